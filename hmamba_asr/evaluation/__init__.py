"""Evaluation of trained models, and measurements on finished runs.

run               decode every split with every search, and write results.json
resume            the cache of decoded batches, from which a killed evaluation goes on
results           the typed records of results.json
run_folder        a finished run: its results, transcripts and recordings
recordings        the recordings of a run's splits
wer, alignment    count errors and align words; significance tests them, breakdown says where they lie
compare           set two runs side by side
timing            time the phases of processing; operations counts multiply-accumulates
speed, run_speed  the protocol for RTF and latency, and its use on a run
segmentation      chunk boundaries against phones and words, which ctc_alignment aligns by a CTC
stability         chunk boundaries of changed recordings
chunk_statistics  figures of the chunking stages
tuning            WER with each weight of a beam search
"""
