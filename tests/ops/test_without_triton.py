"""Everything but the kernels works where Triton is not installed."""

import subprocess

CODE = """
import importlib, pathlib, pkgutil, sys


class NoTriton:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "triton":
            raise ImportError("no module named triton")


sys.meta_path.insert(0, NoTriton())
import torch
import hmamba_asr.models.asr
import hmamba_asr.ops as ops
from hmamba_asr.modules.bimamba import BiMamba

needing = []
for module in pkgutil.walk_packages(ops.__path__, "hmamba_asr.ops."):
    try:
        importlib.import_module(module.name)
    except ImportError as error:
        assert "no module named triton" in str(error), error
        needing.append(module.name.removeprefix("hmamba_asr.ops."))
assert "triton" not in sys.modules
print(*sorted(needing))

x = torch.randn(2, 7, 8, requires_grad=True)
BiMamba(d_model=8)(x, torch.tensor([7, 4])).sum().backward()
assert x.grad.isfinite().all()
try:
    BiMamba(d_model=8, scan_backend="triton")(x, torch.tensor([7, 4]))
except RuntimeError as error:
    print(error)
"""


def test_everything_but_the_kernels_works_without_triton(python, repo):
    done = subprocess.run([python, "-c", CODE], cwd=repo, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    needing, refusal = done.stdout.splitlines()
    allowed = {"launch", "selective_scan.tiles", "segment.pooling_kernels"}
    assert {name for name in needing.split() if not name.endswith(".kernels")} == allowed
    sentence = (
        "the triton backend needs the triton package (no module named triton); install it, or use another"
    )
    assert refusal == f"{sentence} backend."
