"""``examples/nemo_aligner/train_gpt_rpo.py`` on a CPU; ``argv`` are its own arguments."""

from __future__ import annotations

import sys

from integrations.nemo_aligner import shim

shim.install()

from paths import ROOT  # noqa: E402

if __name__ == "__main__":  # checkpoint writers start processes that import this file
    sys.path.insert(0, str(ROOT / "examples" / "nemo_aligner"))
    import train_gpt_rpo

    shim.complete_nemo()
    train_gpt_rpo.main()
