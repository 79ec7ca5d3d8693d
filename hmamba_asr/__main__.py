"""``python -m hmamba_asr`` is the command ``hmamba-asr``."""

import sys

from hmamba_asr.cli import main

sys.exit(main())
