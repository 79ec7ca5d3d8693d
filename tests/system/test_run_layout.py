"""Files of a run folder are where the run folders of an earlier version have them."""

from __future__ import annotations

from pathlib import Path

from hmamba_asr.system.run_layout import RunLayout

OLD_RUN = Path(__file__).parents[1] / "old_runs" / "runs" / "hmamba_demo"


def test_an_old_run_folder_has_this_layout():
    layout = RunLayout(OLD_RUN)
    files = [
        layout.hyperparams,
        layout.training_log,
        layout.manifest("dev"),
        layout.tokenizer("bpe", 32),
        layout.results,
        layout.transcripts("dev", "beam") / "hyp.trn",
        layout.chunks("dev"),
    ]
    assert [file for file in files if not file.is_file()] == []
    assert any(layout.checkpoints.glob("CKPT+*/model.ckpt"))
    # Not in this run folder: another command writes it.
    assert layout.efficiency == OLD_RUN / "efficiency.json"
