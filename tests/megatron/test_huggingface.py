"""Hugging Face folders in and out of real ranks: transformers' numbers and the same bits back, under every layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("megatron.core", reason="the engine needs megatron-core: pip install 'nemo-rpo[mcore]'")
from hf_models import CASES, NEW_TOKENS, PROMPTS, STOP_IDS, WRITERS, make
from paths import SHARED_DATA
from safetensors.torch import load_file, save_file
from torchrun import run_ranks

from nemo_rpo.megatron.checkpoint.huggingface.config import read_hf_config

pytestmark = [pytest.mark.distributed, pytest.mark.every_release]

RANKS = Path(__file__).with_name("ranks_huggingface.py")
TP, PP, VP = "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size"
EP, ETP, DISPATCHER = "expert_model_parallel_size", "expert_tensor_parallel_size", "moe_token_dispatcher_type"
LAYOUTS = {  # by number of ranks, so that those of one number share one start
    1: {"one rank": {}},
    2: {
        "TP=2": {TP: 2},
        "PP=2": {PP: 2},
        "PP=2, interleaved": {PP: 2, VP: 2},
        "DP=2": {},
        "EP=2": {EP: 2},
        "TP=2 × EP=2, experts whole": {TP: 2, EP: 2, ETP: 1},
    },
    4: {
        "TP=2 × PP=2": {TP: 2, PP: 2},
        "EP=2 × experts' TP=2": {TP: 2, EP: 2, ETP: 2, DISPATCHER: "allgather"},
        "PP=2 × EP=2": {PP: 2, EP: 2},
    },
}
OF_EXPERTS = [name for group in LAYOUTS.values() for name, layout in group.items() if EP in layout]
OF_DENSE = [name for group in LAYOUTS.values() for name in group if name not in OF_EXPERTS]
EXPERTS = [name for name, case in CASES.items() if case.has_experts]


def cases_of(layout: str) -> list[str]:
    """The models that run under a layout: those with experts where their layers are cut in another way."""
    dense = [name for name in CASES if name not in EXPERTS] if layout in OF_DENSE else []
    if layout == "DP=2":  # each replica has what one rank has: the ways of reading and of writing are enough
        dense = [name for name in dense if name in WRITERS or name == "llama"]
    return dense + (EXPERTS if layout in (*OF_EXPERTS, "one rank", "TP=2", "PP=2, interleaved") else [])


EVERYWHERE = [(layout, name) for layout in (*OF_DENSE, *OF_EXPERTS) for name in cases_of(layout)]
STORY_LAYOUT = "TP=2 × PP=2"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in CASES:
        make(name, folder / name)
    shutil.copytree(folder / "llama", folder / "damaged")
    damaged = tensors(folder / "llama")
    del damaged["model.layers.3.mlp.up_proj.weight"]
    save_file(damaged, folder / "damaged" / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def launched(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder that the ranks of a layout wrote; they start when the first of their layouts is asked for."""
    folders: dict[str, Path] = {}

    def folder_of(layout: str) -> Path:
        if layout not in folders:
            [(nproc, layouts)] = [(n, group) for n, group in LAYOUTS.items() if layout in group]
            folders.update({name: tmp_path_factory.mktemp("ran") for name in layouts})
            stories = SHARED_DATA / "stories260k" / "hf"
            task = {
                "layouts": {str(folders[name]): (sizes, cases_of(name)) for name, sizes in layouts.items()},
                "models": str(models),
                "stories": str(stories) if STORY_LAYOUT in layouts and stories.is_dir() else None,
            }
            run_ranks(RANKS, nproc, json.dumps(task), timeout=500)
        return folders[layout]

    return folder_of


@pytest.fixture(scope="module", params=OF_DENSE)
def ran(request: pytest.FixtureRequest, launched: Callable[[str], Path]) -> Path:
    return launched(request.param)


@pytest.mark.parametrize(("ran", "name"), EVERYWHERE, indirect=["ran"])
def test_logits_and_logprobs_equal_transformers(ran: Path, models: Path, name: str) -> None:
    ours = load_file(ran / f"{name}.logits")["logits"][..., :50]
    theirs = load_file(models / f"{name}.expected")["logits"]
    if CASES[name].precision == "bf16":  # 16-bit activations: near, and far from any mix-up of the weights
        assert (ours - theirs).abs().mean() < 0.02 * theirs.std()
        return
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.log_softmax(-1), theirs.log_softmax(-1), atol=1e-5, rtol=0)


def texts(ran: Path, name: str) -> dict[str, list[dict[str, Any]]]:
    """Every rank's, which are all the same."""
    first, *others = [json.loads(path.read_text()) for path in sorted(ran.glob(f"{name}.texts.*.json"))]
    assert all(other == first for other in others)
    return first


@pytest.fixture(scope="module")
def likeliest(models: Path) -> Callable[[str], list[tuple[list[int], list[float]]]]:
    """By transformers' ``generate``: new tokens and their log-probs, of each prompt."""
    transformers = pytest.importorskip("transformers")
    found: dict[str, list[tuple[list[int], list[float]]]] = {}

    def of(name: str) -> list[tuple[list[int], list[float]]]:
        if name not in found:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                models / name, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            model.generation_config.eos_token_id = None
            found[name] = []
            for prompt in PROMPTS:
                ids = torch.tensor([prompt])
                new = model.generate(
                    ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
                )
                with torch.no_grad():
                    log_p = model(new).logits[0].log_softmax(-1)
                answer = new[0, len(prompt) :]
                of_tokens = log_p[len(prompt) - 1 : -1].gather(1, answer.unsqueeze(1)).squeeze(1)
                found[name].append((answer.tolist(), of_tokens.tolist()))
        return found[name]

    return of


@pytest.mark.parametrize("name", [name for name in WRITERS if CASES[name].precision == "32"])
def test_greedy_texts_are_those_of_transformers_generate(
    ran: Path, likeliest: Callable[[str], list[tuple[list[int], list[float]]]], name: str
) -> None:
    for text, (ids, logps) in zip(texts(ran, name)["greedy"], likeliest(name), strict=True):
        assert text["ids"] == ids and not text["ended"]
        assert text["logps"] == pytest.approx(logps, abs=1e-5) and text["drawn_logps"] == [0.0] * NEW_TOKENS


@pytest.mark.parametrize("name", WRITERS)
def test_drawn_texts_are_the_same_in_every_batch_and_under_every_layout(
    ran: Path, launched: Callable[[str], Path], name: str
) -> None:
    found, alone = texts(ran, name), texts(launched("one rank"), name)
    exact = CASES[name].precision == "32"
    for here, pieces, there in zip(found["drawn"], found["drawn in pieces"], alone["drawn"], strict=True):
        assert here["ids"] == pieces["ids"] and here["ended"] == (here["ids"][-1] in STOP_IDS)
        if exact:
            assert here["ids"] == there["ids"]
            for name_of in ("logps", "drawn_logps"):
                assert here[name_of] == pytest.approx(there[name_of], abs=1e-4)
    ids = [tuple(text["ids"]) for text in found["drawn"]]
    assert ids[1] != ids[2]  # one prompt, two seeds


def test_some_texts_end_by_themselves_and_some_at_the_limit(launched: Callable[[str], Path]) -> None:
    found = [text for name in WRITERS for text in texts(launched("one rank"), name)["drawn"]]
    assert {text["ended"] for text in found} == {True, False}
    assert all(len(text["ids"]) == NEW_TOKENS for text in found if not text["ended"])


@pytest.mark.parametrize(("ran", "name"), EVERYWHERE, indirect=["ran"])
def test_export_is_the_import_bit_for_bit(ran: Path, models: Path, name: str) -> None:
    source, exported = tensors(models / name), tensors(ran / name)
    assert exported.keys() == source.keys()
    for key, tensor in source.items():
        assert exported[key].dtype == tensor.dtype, key
        assert torch.equal(exported[key], tensor), key
    assert read_hf_config(ran / name) == read_hf_config(models / name)
    files = sorted(path.name for path in (ran / name).iterdir())
    if CASES[name].files == "many":
        index = json.loads((ran / name / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"].values()) | {"model.safetensors.index.json", "config.json"} == set(files)
        assert len(files) > 4
    else:
        assert files == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("ran", "name"),
    [(STORY_LAYOUT, name) for name in ("llama_tied_scaled_rope", "llama_biases", "qwen2", "qwen3_tied")]
    + [("PP=2 × EP=2", name) for name in EXPERTS],
    indirect=["ran"],
)
def test_transformers_loads_an_export_without_source_config(ran: Path, models: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        ran / f"{name}_without_source", attn_implementation="eager"
    )
    assert type(model).__name__ == f"{CASES[name].family}ForCausalLM"
    expected = load_file(models / f"{name}.expected")
    with torch.no_grad():
        torch.testing.assert_close(model(expected["token_ids"]).logits, expected["logits"], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ran", "name"), [at for at in EVERYWHERE if at[1] in EXPERTS], indirect=["ran"])
def test_every_rank_writes_what_transformers_would(ran: Path, models: Path, name: str) -> None:
    """Greedily; expert ranks exchange tokens and have to end together."""
    transformers = pytest.importorskip("transformers")
    everyones = [json.loads(path.read_text()) for path in sorted(ran.glob(f"{name}.*.written"))]
    assert len({json.dumps(written) for written in everyones}) == 1
    model = transformers.AutoModelForCausalLM.from_pretrained(models / name, attn_implementation="eager")
    without_cache, cached = everyones[0]
    assert without_cache == cached
    for prompt, written in zip(([1], [1, 7, 3]), cached, strict=True):
        ids = list(prompt)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert ids[len(prompt) :] == written


def test_every_rank_refuses_alike_and_leaves_nothing_half_written(ran: Path) -> None:
    everyones = [json.loads(path.read_text()) for path in sorted(ran.glob("refusals.*.json"))]
    damaged, other_model, not_empty, wrong_config, disk_full = everyones[0]
    assert "damaged has no tensor model.layers.3.mlp.up_proj.weight" in damaged
    assert "only the folder's architecture has a decoder.layers.self_attention.linear_qkv.bias" in other_model
    assert "exists and is not empty" in not_empty
    assert "kv_channels=16" in wrong_config
    assert "No space left on device" in disk_full
    for messages in everyones:
        assert messages == everyones[0][: len(messages)]
        assert not any("\n" in message for message in messages)
    assert not (ran / "full").exists() and not (ran / "wrong").exists() and not list(ran.glob(".*"))


def test_stories_model_tells_the_documented_story_and_comes_back_unchanged(
    shared_data: Path, launched: Callable[[str], Path]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    stories = shared_data / "stories260k"
    if not stories.is_dir():
        pytest.skip(f"{stories} does not exist")
    out = launched(STORY_LAYOUT)  # its 5 layers do not divide evenly over the stages
    everyones = [json.loads(path.read_text()) for path in sorted(out.glob("generated.*.json"))]
    assert len(everyones) == 4 and all(found == everyones[0] for found in everyones)
    story, batch = everyones[0]["story"], everyones[0]["batch"]
    text = tokenizers.Tokenizer.from_file(str(stories / "hf" / "tokenizer.json")).decode(story)
    assert text.strip() == (stories / "greedy_reference.txt").read_text().strip()
    # Rows of unequal length in one batch, under sequence parallelism, each ending at its end-of-text token.
    end = story.index(story[9]) + 1
    assert batch == [story[:end], story[7:end], story[2:end]]
    source, exported = tensors(stories / "hf"), tensors(out / "stories")
    assert source.keys() == exported.keys() and all(torch.equal(source[key], exported[key]) for key in source)
    assert {path.name for path in (out / "stories").iterdir()} == {path.name for path in (stories / "hf").iterdir()}
