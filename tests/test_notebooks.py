"""Every notebook with MODEL = "gpt2", as a user runs it: a folder of that name stands in for the hub.

It has GPT-2's architecture (12 layers of 12 heads, 1,024 positions), its tokenizer's format and its large
first position, with narrow layers of random weights. Needs the extra `notebooks`. CI runs two
of them, `pytest -m sweep tests/test_notebooks.py` the others.
"""

import json

import pytest
import torch
import transformers
from test_release import NOTEBOOKS
from tokenizers import ByteLevelBPETokenizer

from tl_weighted_pca import embedded

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

END = "<|endoftext|>"
# Words of the prompts in directions_of_a_behaviour, each a single token in GPT-2.
NAMES = ["Mary", "John", "Anna", "Tom", "Paul", "James", "Sarah", "Mark"]
# Fewer data: what is written in the notebook, and what takes its place.
LESS = {
    "dictionaries": [
        ("24576, 20_000_000", "256, 4_096"),
        ("else 4096", "else 256"),
        ("range(64, len(data))), data.select(range(64))", "range(16, 80)), data.select(range(16))"),
    ],
    "directions_of_a_behaviour": [
        ("N_TRAIN, N_HELDOUT, STEPS = 400, 100, 80", "N_TRAIN, N_HELDOUT, STEPS = 48, 16, 2")
    ],
    "feature_ansatz": [("STORIES = 80", "STORIES = 8")],
    "gradient_pca": [("tokens[:400], tokens[400:500]", "tokens[:64], tokens[64:80]")],
    "local_interaction_basis": [("STORIES = 100", "STORIES = 8")],
    "map_of_a_model": [("tokens[:400], tokens[400:432]", "tokens[:24], tokens[24:28]")],
    "svd": [],
    "weighted_pca": [
        ("tokens[:400], tokens[400:500]", "tokens[:32], tokens[32:40]"),
        ("steps=40", "steps=2"),
    ],
}
# Run last, in the notebook itself; where `train` is a function, `data` holds the rows.
APART = """
def rows(*names):
    known = [globals()[name] for name in names if name in globals()]
    data = next((each for each in known if not callable(each)), [])
    return {str(row["tokens"] if isinstance(row, dict) else row) for row in data}

fitted, judged = rows("train", "data"), rows("heldout")
print("fitted and judged rows:", len(fitted), len(judged), "common:", len(fitted & judged))
"""
QUICK = {"svd", "gradient_pca"}
WHOLE = (pytest.mark.slow, pytest.mark.sweep)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A working directory with gpt2/ and NeelNanda/pile-10k/, found before the hub is asked."""
    folder = tmp_path_factory.mktemp("hub")
    texts = embedded.stories("train", 600)["text"]
    core = ByteLevelBPETokenizer()
    people = [" ".join(["", *NAMES])] * 100
    core.train_from_iterator([*texts[:200], *people], vocab_size=700)
    core.add_special_tokens([END])  # the last id, as GPT-2's
    tokenizer = transformers.GPT2TokenizerFast(
        tokenizer_object=core._tokenizer, bos_token=END, eos_token=END, unk_token=END
    )
    assert all(len(tokenizer.encode(f" {name}")) == 1 for name in NAMES)
    tokenizer.save_pretrained(folder / "gpt2")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=48, initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight[0] *= 100
    model.save_pretrained(folder / "gpt2")
    pile = folder / "NeelNanda" / "pile-10k"
    pile.mkdir(parents=True)
    lines = [json.dumps({"text": text}) for text in texts]
    (pile / "train.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else WHOLE)
        for path in NOTEBOOKS
    ],
)
def test_it_runs_through_on_gpt2(path, hub, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(hub / "cache"))
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for written, instead in [('MODEL = "embedded"', 'MODEL = "gpt2"'), *LESS[path.stem]]:
        (cell,) = [cell for cell in code if written in cell.source]
        cell.source = cell.source.replace(written, instead)
    notebook.cells.append(nbformat.v4.new_code_cell(APART))
    run = {"metadata": {"path": str(hub)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=run).execute()
    outputs = [output for cell in code for output in cell.outputs]
    said = "".join(output.get("text", "") for output in outputs)
    assert "times the median" not in said  # the large first position is left out
    counts = notebook.cells[-1].outputs[0].text
    assert counts.endswith("common: 0\n"), counts
