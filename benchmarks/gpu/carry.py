"""Makes what has to be brought to a machine with a GPU, besides wheels: graphs of the demo, a golden pack, and the
full-size graphs without their weights.

    python -m benchmarks.gpu.carry -o ARTIFACTS [--tars DIR] [--small] [--only full|demo]

--small: a small model in the full one's place, for trying everything with --cpu. Needs the extra `export`; the
full-size trace holds about 6 GB of memory. Directories that are up to date are left as they are.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

from benchmarks.gpu.parts.sizes import model
from benchmarks.gpu.skeleton import hollow

CHECKPOINT = str(Path(__file__).resolve().parents[2] / "models" / "demo")
FORMS = {
    "demo-fp32": ["--precision", "fp32", "--emitter", "native"],
    "demo-fp16": ["--precision", "fp16", "--emitter", "native"],
    "demo-fp16-portable": ["--precision", "fp16", "--emitter", "portable"],
}
FULL = "full-fp16-skeleton"


def videomar(*words: str) -> None:
    print("videomar", *words, flush=True)
    subprocess.run([sys.executable, "-m", "videomar", *words], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--tars", type=Path, help="pack it here as well, full.tar and demo.tar")
    parser.add_argument("--only", choices=("full", "demo"))
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    out = args.output
    out.mkdir(parents=True, exist_ok=True)
    if args.only != "full":
        for name, options in FORMS.items():
            videomar("export", CHECKPOINT, "-o", str(out / name), *options)
        videomar("calibrate", str(out / "demo-fp32"), "-o", str(out / "demo-int8"), "--demo", "4")
        videomar("record", str(out / "demo-fp32"), "-o", str(out / "pack"))
    if args.only != "demo":
        hollow(model("full", "cpu" if args.small else "cuda"), out / FULL)
    if args.tars:
        args.tars.mkdir(parents=True, exist_ok=True)
        made = [p for p in sorted(out.iterdir()) if (p / "manifest.json").is_file()]
        for name, directories in (
            ("full", [p for p in made if p.name == FULL]),
            ("demo", [p for p in made if p.name in (*FORMS, "demo-int8", "pack")]),
        ):
            file = args.tars / f"{name}.tar"
            with tarfile.open(file, "w") as tar:
                for directory in directories:
                    tar.add(directory, directory.name)
            print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
