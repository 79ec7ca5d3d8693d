"""Evaluation of trained models, and measurements on finished runs.

run                 decode every split with every search, and write results.json
resume              the cache of decoded batches, from which a killed evaluation goes on
results             the typed records of results.json; old_results: what older files left to the YAML
finished_run        a finished run: its results, transcripts and recordings
wer                 count word and character errors
word_alignment      a reference and a hypothesis, word by word
significance        test differences in WER; breakdown says where the errors lie
compare             set two runs side by side
timing              time the phases of processing
operations          count multiply-accumulates
speed               the protocol for RTF and latency; speed_of_run uses it on a run
segmentation        where chunks begin, and the file chunks.jsonl
textgrid            forced alignments of phones and words, which chunks are compared with
ctc_alignment       alignments of tokens and words by a run's CTC, in the same form
boundary_agreement  precision, recall, F1 and R-value of chunk boundaries
stability           chunk boundaries of changed recordings
chunk_statistics    figures of the chunking stages
tuning              WER with each weight of a beam search
"""
