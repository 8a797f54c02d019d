"""Command lines made at random, and what must hold of each.

PYTHONPATH=tests python tests/cli/fuzz.py 300
"""

from __future__ import annotations

import collections
import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import datasets
from command_line import FEW, POINT, run

from tl_weighted_pca import embedded
from tl_weighted_pca.runs.manifest import MANIFEST, read_manifest, sha256

ODD = [
    "plain", "with space", "[1]", "a*", "q?", "{a,b}", "ünïcödé", "new\nline", "#h", "100%", "~t", "-dash",
    "$HOME", "'q\"", "a;b&c|d", "back\\slash", ".hidden", "[bold red]", "e\u0301", "ctrl\x07", "a::b", "C:x",
    "日本", "trail ", "dots..", "x" * 120,
]  # fmt: skip
"""Names whose characters mean something to a shell, a glob, rich, a terminal, `datasets` or a file system."""


COMMANDS = [
    "collect", "basis", "ablate", "cards", "ansatz", "dictionary", "info", "svd", "interaction", "map",
    "demo", "report",
]  # fmt: skip


class World:
    """A folder of inputs, good and bad, that random command lines read."""

    def __init__(self, top: Path, seed: int) -> None:
        self.top, self.random = top, random.Random(seed)
        self.made: list[Path] = []  # by earlier calls, which may be overwritten
        self.inputs, self.outputs = top / "in", top / "out"
        self.inputs.mkdir(parents=True)
        self.outputs.mkdir()
        good = self.inputs / "good"
        story = "\n\n".join(embedded.stories("train", 40)["text"])
        made = run("collect", "--hook", POINT, *FEW, "--out", good / "run")
        assert made.exit_code == 0, made.output
        made = run("basis", good / "run", "--method", "pca", "--out", good / "bases")
        assert made.exit_code == 0, made.output
        self.basis = good / "bases" / f"{POINT}.pca.safetensors"
        self.moments = good / "run" / "moments.safetensors"
        texts, tensors, folders = {}, {}, {}
        for name in self.random.sample(ODD, 8):
            place = self.inputs / name
            place.mkdir()
            (place / f"{name}.txt").write_text(story)
            (place / f"{name}.safetensors").write_bytes(self.basis.read_bytes())
            texts[place / f"{name}.txt"] = "good"
            tensors[place / f"{name}.safetensors"] = "good"
        rows = datasets.Dataset.from_dict({"text": story.split("\n\n")})
        for name in self.random.sample(ODD, 2):
            rows.save_to_disk(self.inputs / f"saved {name}")
            texts[self.inputs / f"saved {name}"] = "good"
        rows.to_json(self.inputs / "rows.jsonl")
        rows.to_parquet(self.inputs / "rows.parquet")
        texts |= {self.inputs / "rows.jsonl": "good", self.inputs / "rows.parquet": "good"}
        folders |= {good / "run": "good", good / "bases": "good"}
        for suffix, kinds in ((".txt", texts), (".safetensors", tensors)):
            for kind, path in self._bad(suffix):
                kinds[path] = kind
        (self.inputs / "empty").mkdir()
        folders[self.inputs / "empty"] = "empty"
        self.texts, self.tensors, self.folders = texts, tensors, folders

    def _bad(self, suffix: str):
        sources = {".txt": next(self.inputs.glob("*/*.txt")), ".safetensors": self.basis}
        whole = sources[suffix].read_bytes()
        at = self.inputs / "bad"
        at.mkdir(exist_ok=True)
        yield "missing", at / f"missing{suffix}"
        for kind, content in {
            "empty": b"",
            "binary": bytes(range(256)) * 64,
            "truncated": whole[: len(whole) // 2],
            "changed": whole[:40] + b"\xff\xfe" + whole[42:],
            "json": b'{"text": 5}\n{"text": null}\n',
        }.items():
            (at / f"{kind}{suffix}").write_bytes(content)
            yield kind, at / f"{kind}{suffix}"
        with (at / f"huge{suffix}").open("wb") as file:
            file.truncate(2**36)  # sparse
        yield "huge", at / f"huge{suffix}"
        (at / f"unreadable{suffix}").write_bytes(whole)
        (at / f"unreadable{suffix}").chmod(0)
        yield "unreadable", at / f"unreadable{suffix}"
        (at / f"folder{suffix}").mkdir()
        yield "folder", at / f"folder{suffix}"
        os.mkfifo(at / f"pipe{suffix}")
        yield "pipe", at / f"pipe{suffix}"
        for kind, target in {
            "link": sources[suffix],
            "dangling": at / "nowhere",
            "loop": at / f"loop{suffix}",
        }.items():
            (at / f"{kind}{suffix}").symlink_to(target)
            yield kind, at / f"{kind}{suffix}"

    def pick(self, paths, good=0.6) -> Path:
        """One that is good, with that probability."""
        wanted = self.random.random() < good
        return self.random.choice([p for p, kind in paths.items() if (kind == "good") == wanted])

    def call(self) -> list[str]:
        """A command line."""
        choice, chance = self.random.choice, self.random.random
        name = choice(COMMANDS)
        line: list[object] = [name]
        files = self.tensors | self.folders
        few = ["--max-tokens", "300", "--no-progress", "--batch-size", "8"]
        if name == "collect":
            line += ["--hook", POINT, *few]
        elif name == "basis":
            moments = {self.moments: "good", **self.folders, **self.tensors}
            line += [
                choice([self.moments, self.moments.parent])
                if chance() < 0.5
                else self.pick(moments)
            ]
            line += choice([["--method", "pca"], [], ["--method", "random", "--center", "none"]])
        elif name == "ablate":
            line += [self.pick(files) for _ in range(choice([1, 1, 2]))] + ["--ranks", "8,64", *few]
        elif name == "cards":
            line += [self.pick(self.tensors), "-n", "2", "--no-ablation", *few]
        elif name == "ansatz":
            line += ["--layer", "1", *few]
        elif name == "dictionary":
            line += [
                "--features",
                "8",
                "--n-tokens",
                "1024",
                "--max-tokens",
                "300",
                "--no-progress",
            ]
            line += ["--start", self.pick(self.tensors)] if chance() < 0.4 else []
            line += ["--heldout", self.pick(self.texts)] if chance() < 0.3 else []
        elif name == "info":
            return ["info", str(self.pick(files, 0.4))]
        elif name == "report":
            line += [self.pick(self.folders | self.tensors) for _ in range(choice([1, 1, 2]))]
        elif name == "map":
            line += ["--hook", POINT, "--shares", "0.5,1", "--heldout-tokens", "200", *few]
        elif name == "demo":
            line += [
                "--stories",
                "24",
                "--heldout",
                "8",
                "--steps",
                "1",
                "--ranks",
                "8,64",
                "--no-progress",
            ]
        elif name == "interaction":
            line += [
                "--hook",
                "blocks.[12].hook_resid_post",
                "--edge-tokens",
                "60",
                "--probes",
                "1",
                *few,
            ]
        if (
            name in ("collect", "ablate", "cards", "ansatz", "dictionary", "interaction", "map")
            and chance() < 0.6
        ):
            line += ["--dataset", self.pick(self.texts)]
        if chance() < 0.15:
            line += choice([["--positions", "1:"], ["--seed", "7"], ["--model-class", "TransformerBridge"],
                            ["--ranks", "0,x"], ["--model", str(self.inputs)], ["--batch-size", "0"],
                            ["--positions", "9:1"], ["--nonsense"], ["--dtype", "float64"]])  # fmt: skip
        line += ["--out", self._out(line)] + (["--overwrite"] if chance() < 0.5 else [])
        return [str(part) for part in line]

    def _out(self, line: list[object]) -> Path:
        """Mostly a place of its own; sometimes one that touches an input."""
        choice = self.random.choice
        given = [part for part in line if isinstance(part, Path)]
        if given and self.random.random() < 0.3:
            one = choice(given)
            return choice(
                [one, one.parent, one / "deep", one.parent / "new", self.inputs, self.top]
            )
        return self.outputs / choice(ODD) / choice(["", "deep/er"])

    def digest(self) -> dict[str, str]:
        """Of every input, links and all."""
        found = {}
        for path in sorted(self.inputs.rglob("*")):
            if any(path == made or made in path.parents for made in self.made):
                continue
            mode = path.lstat().st_mode
            if path.is_symlink():
                told = f"-> {os.readlink(path)}"
            elif path.is_file():
                head = path.read_bytes() if path.stat().st_size < 2**26 else b"huge"
                told = hashlib.sha256(head).hexdigest() + str(path.stat().st_size)
            else:
                told = "folder or pipe"
            found[str(path)] = f"{mode:o} {told}"
        return found


def judge(
    world: World, line: list[str], code: int, out: str, err: str, before: dict[str, str]
) -> str:
    """What is wrong about how a command ended; nothing, if all is as it must be."""
    after = world.digest()
    lost = {path for path in before if after.get(path) != before[path]}
    if lost:
        return f"inputs were changed: {sorted(lost)[:3]}"
    if code not in (0, 1, 2):
        return f"exit {code}"
    if "Traceback" in out + err:
        return "a traceback"
    folder = Path(line[line.index("--out") + 1]) if "--out" in line else None
    added = {Path(path) for path in after.keys() - before.keys()}
    if code and added:
        return f"it failed, and left {sorted(added)[:3]}"
    if code == 1:
        errors = [part for part in err.splitlines() if not part.startswith("Note:")]
        if len(errors) != 1 or not errors[0].startswith("Error: ") or len(errors[0]) > 900:
            return f"not one sentence: {errors}"
    if code == 2 and "Usage:" not in err:
        return "exit 2 without a usage"
    if code == 0 and folder is not None:
        world.made.append(folder)
        manifest = read_manifest(folder)
        if not manifest["finished"]:
            return "it is not finished"
        wrong = [n for n, was in manifest["outputs"].items() if sha256(folder / n) != was]
        here = {file.name for file in folder.iterdir()} - {MANIFEST}
        if wrong or here != set(manifest["outputs"]):
            return f"files are not what the manifest says: {wrong}"
        read = [n for n, was in manifest["inputs"].items() if sha256(n) != was]
        if read:
            return f"inputs are not what the manifest says: {read}"
    if list(world.outputs.rglob("*.partial")):
        return "a partial folder was left"
    return ""


def in_process(line: list[str]) -> tuple[int, str, str]:
    """A command in this process; whatever is raised but an exit counts as a traceback."""
    result = run(*line)
    crash = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (
        result.exit_code,
        result.stdout,
        result.stderr + (f"Traceback {result.exception!r}" if crash else ""),
    )


def as_process(line: list[str]) -> tuple[int, str, str]:
    """A command as a user runs it."""
    command = [sys.executable, "-m", "tl_weighted_pca", *line]
    env = os.environ | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, done.stdout, done.stderr


def fuzz(world: World, n: int, how=in_process):
    """Each call, how it ended, and what is wrong about that."""
    for _ in range(n):
        line = world.call()
        before = world.digest()
        code, out, err = how(line)
        yield line, code, err, judge(world, line, code, out, err, before)


if __name__ == "__main__":
    import tempfile

    n, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    ends, said = collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as top:
        for line, code, err, wrong in fuzz(World(Path(top) / "w", seed), n):
            ends[line[0], code] += 1
            if code == 1:
                said[re.sub(r"/tmp/\S+|'[^']*'|\d+", "…", err.splitlines()[-1])[:70]] += 1
            if wrong:
                print("WRONG", wrong[:600], line, err[-300:], sep="\n   ", flush=True)
    print(dict(collections.Counter(code for (_, code), k in ends.items() for _ in range(k))))
    print({name: {c: k for (m, c), k in sorted(ends.items()) if m == name} for name, _ in ends})
    for text, k in said.most_common():
        print(k, text)
