#!/usr/bin/env python3
"""Train an n-gram language model on a recogniser's tokens with KenLM's lmplz.

    python recipes/librispeech/train_ngram.py --tokenizer_file FILE --text FILE ... --output_folder DIR

Texts are files with a sentence a line, or manifests.

The output folder gets ``export/`` with the model and tokens.txt, the model's words by token number. The model
is ngram.bin where KenLM's build_binary is beside lmplz or on the PATH, and ngram.arpa elsewhere.
``train.py --lm_folder`` takes the folder, which needs the Python package kenlm.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hmamba_asr.data.text import TextDataset
from hmamba_asr.data.tokenizer import load_tokenizer
from hmamba_asr.training.launch import run_script


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Train an n-gram language model on a recogniser's tokens with KenLM's lmplz."
    )
    parser.add_argument("--tokenizer_file", required=True, help="the recogniser's SentencePiece model")
    parser.add_argument("--text", required=True, nargs="+", help="files with a sentence a line, or manifests")
    parser.add_argument("--output_folder", required=True, type=Path)
    parser.add_argument("--order", type=int, default=4, help="tokens in an n-gram (default: %(default)s)")
    parser.add_argument(
        "--prune",
        type=int,
        nargs="+",
        default=[],
        help="drop 1-, 2-, ... grams with counts up to these (lmplz)",
    )
    parser.add_argument("--memory", default="50%", help="memory of lmplz for sorting (default: %(default)s)")
    parser.add_argument("--lmplz", default="lmplz", help="path of lmplz, if it is not on the PATH")
    args = parser.parse_args(argv)
    if args.order < 2:
        raise ValueError(f"--order is {args.order}; lmplz takes 2 or more.")
    lmplz = shutil.which(args.lmplz)
    if lmplz is None:
        raise FileNotFoundError(
            f"there is no {args.lmplz}; build KenLM (https://github.com/kpu/kenlm) and give --lmplz FILE."
        )
    tokenizer = load_tokenizer(args.tokenizer_file)
    dataset = TextDataset(args.text, tokenizer=tokenizer, max_tokens=sys.maxsize)
    tokens = [tokenizer.id_to_piece(i) for i in range(tokenizer.get_piece_size())]

    export = args.output_folder / "export"
    export.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.output_folder, prefix=".lmplz-") as scratch:
        arpa, binary = Path(scratch) / "ngram.arpa", Path(scratch) / "ngram.bin"
        # A small corpus gives no discounts; with --discount_fallback, lmplz takes its defaults.
        command = [lmplz, "--order", str(args.order), "--discount_fallback", "--memory", args.memory]
        command += ["--temp_prefix", scratch + "/", "--arpa", str(arpa)]
        command += ["--prune", *map(str, args.prune)] if args.prune else []
        sentences = (dataset[i]["tokens"].tolist() for i in range(len(dataset)))
        _run(command, (" ".join(tokens[t] for t in sentence) for sentence in sentences))
        model = arpa
        # KenLM's build puts build_binary beside lmplz. One on the PATH may be another program.
        build = shutil.which("build_binary", path=str(Path(lmplz).parent)) or shutil.which("build_binary")
        if build is not None:
            _run([build, str(arpa), str(binary)], ())
            model = binary
        # Model and tokens belong together, and only one form of the model may exist.
        for old in ("ngram.arpa", "ngram.bin"):
            (export / old).unlink(missing_ok=True)
        (export / "tokens.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        os.replace(model, export / model.name)
    print(f"{args.order}-gram of {len(dataset)} sentences in {export / model.name}")
    return 0


def _run(command: list[str], lines: Iterable[str]) -> None:
    """Run one of KenLM's programs on these lines of input.

    Raises
    ------
    ValueError
        If it fails, with the last lines of its stderr.
    """
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            assert process.stdin is not None
            with process.stdin as stdin:
                for line in lines:
                    stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            pass  # it ended early; stderr says why
        except BaseException:
            process.kill()
            raise
        finally:
            code = process.wait()
        stderr.seek(0)
        lines_said = [line.strip() for line in stderr.read().decode(errors="replace").splitlines()]
    if code:
        message = " ".join([line for line in lines_said if line][-3:]) or "it said nothing"
        raise ValueError(f"{Path(command[0]).name} ended with code {code}: {message}")


if __name__ == "__main__":
    run_script(main)
