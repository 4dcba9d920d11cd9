"""Export a checkpoint folder by Optimum: `python optimum_export.py FOLDER OUT`, in Optimum's own environment."""

from __future__ import annotations

import sys


def main() -> None:
    """Write OUT/model.onnx, without past, all logits."""
    from optimum.exporters.onnx import main_export

    folder, out = sys.argv[1:]
    main_export(folder, out, task="text-generation", do_validation=False, no_post_process=True)


if __name__ == "__main__":
    main()
