"""The boundary between prompt and response, plain and through a chat template."""

import dataclasses
import shutil

import numpy as np
import pytest

from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import DataError

from .conftest import CHAT_TEMPLATE, train_tokenizer

USER = [{"role": "user", "content": "which answer is the better one?"}]
ASSISTANT = [{"role": "assistant", "content": "a tie says nothing"}]


def load(folder, use_chat_template=False):
    return PreferenceTokenizer.load(TokenizerSpec(str(folder), use_chat_template))


@pytest.mark.parametrize("prompt", ["once upon a time", "once upon a time ", "", "which ", "a\n\n", "ﬁn Ω 漢字 "])
@pytest.mark.parametrize("response", ["there was a cat", " there was a cat", "\n\nthe dog", "x", "é", " "])
def test_plain_text_is_bos_prompt_then_response_eos_and_decodes_to_both(tokenizer, prompt, response):
    prompt_ids, response_ids = tokenizer.render(prompt, response)
    assert prompt_ids[0] == tokenizer.bos_id
    assert response_ids[-1] == tokenizer.eos_id
    assert tokenizer.tokenizer.decode(prompt_ids[1:]) == prompt
    assert tokenizer.tokenizer.decode(response_ids[:-1]) == response
    assert prompt_ids.dtype == response_ids.dtype == np.int32


def test_the_prompt_has_the_ids_it_has_at_generation_whatever_follows(tokenizer):
    # "a" + " lot" joins cleanly; "a l" + "ot" would merge into one token over the boundary.
    alone = tokenizer.tokenizer.encode("many votes say a l", add_special_tokens=False)
    joint = tokenizer.tokenizer.encode("many votes say a lot", add_special_tokens=False)
    assert joint[: len(alone)] != alone, "the example must merge over the boundary to test anything"
    prompt_ids, _ = tokenizer.render("many votes say a l", "ot")
    assert prompt_ids[1:].tolist() == alone


def test_where_nothing_merges_the_whole_is_the_joint_tokenisation(tokenizer):
    prompt_ids, response_ids = tokenizer.render("once upon a time", " there was a little cat")
    joint = tokenizer.tokenizer.encode("once upon a time there was a little cat", add_special_tokens=False)
    assert [*prompt_ids[1:], *response_ids[:-1]] == joint


def test_a_sentencepiece_tokenizer_adds_no_space_before_the_response(shared_data):
    tokenizer = load(shared_data / "stories260k" / "hf")
    for prompt, response in [("Q: x\n", "Hello there"), ("Say ", "yes"), ("Say", " yes"), ("Once upon a ti", "me")]:
        prompt_ids, response_ids = tokenizer.render(prompt, response)
        assert tokenizer.tokenizer.decode([*prompt_ids[1:], *response_ids[:-1]]) == prompt + response
        assert (prompt_ids[0], response_ids[-1]) == (1, 2)


def test_the_chat_template_is_followed_to_the_letter(tokenizer):
    prompt_ids, response_ids = tokenizer.render(USER, ASSISTANT)
    backend = tokenizer.tokenizer
    assert backend.decode(prompt_ids) == "<s><|user|>\nwhich answer is the better one?<|end|>\n<|assistant|>\n"
    assert backend.decode(response_ids) == "a tie says nothing<|end|>\n"
    whole = backend.encode(backend.apply_chat_template(USER + ASSISTANT, tokenize=False), add_special_tokens=False)
    assert [*prompt_ids, *response_ids] == whole


def test_plain_rows_go_through_the_template_when_asked(tokenizer_folder, tokenizer):
    asked = load(tokenizer_folder, use_chat_template=True)
    plain = asked.render(USER[0]["content"], ASSISTANT[0]["content"])
    for mixed in (tokenizer.render(USER, ASSISTANT), tokenizer.render(USER, "a tie says nothing")):
        assert [ids.tolist() for ids in mixed] == [ids.tolist() for ids in plain]


def test_responses_that_are_not_ended_are_their_words(tokenizer_folder, tokenizer, tmp_path):
    """For verdicts of one word: the same ids without the end, plain and through a template."""
    bare = PreferenceTokenizer.load(TokenizerSpec(str(tokenizer_folder), False, end_responses=False))
    for prompt, response, end in (("which ", "a tie", 1), (USER, ASSISTANT, 2)):
        whole, without = tokenizer.render(prompt, response), bare.render(prompt, response)
        assert without[0].tolist() == whole[0].tolist() and without[1].tolist() == whole[1][:-end].tolist()
        assert tokenizer.tokenizer.decode(without[1]) in ("a tie", "a tie says nothing")
    glued = CHAT_TEMPLATE.replace("<|end|>\n", "{{ m.content | length }}")
    assert glued != CHAT_TEMPLATE
    odd = PreferenceTokenizer.load(
        TokenizerSpec(str(train_tokenizer(tmp_path / "odd", glued)), False, end_responses=False)
    )
    with pytest.raises(DataError, match="cannot be told from its words"):
        odd.render(USER, ASSISTANT)


DIALOGUE = [
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "are you sure?"},
    {"role": "assistant", "content": "a tie says nothing"},
]


def test_of_a_dialogue_only_the_assistants_turns_are_runs_of_its_own(tokenizer):
    prompt_ids, response_ids, runs = tokenizer.render_turns(USER, [*DIALOGUE, {"role": "user", "content": "bye"}])
    assert prompt_ids.tolist() == tokenizer.render(USER, DIALOGUE[:1])[0].tolist()
    pieces = np.split(response_ids, np.cumsum(runs)[:-1])
    assert [tokenizer.tokenizer.decode(piece) for piece in pieces] == [
        "yes<|end|>\n",
        "<|user|>\nare you sure?<|end|>\n<|assistant|>\n",
        "a tie says nothing<|end|>\n",
    ]
    assert [ids.tolist() for ids in tokenizer.render(USER, DIALOGUE)] == [prompt_ids.tolist(), response_ids.tolist()]


def test_one_message_is_one_run(tokenizer):
    for response in ("a tie", ASSISTANT):
        _, response_ids, runs = tokenizer.render_turns(USER, response)
        assert runs.tolist() == [len(response_ids)]


def test_a_completion_may_begin_with_somebody_else(tokenizer):
    prompt_ids, response_ids, runs = tokenizer.render_turns(USER, DIALOGUE[1:])
    assert runs[0] == 0 and len(runs) == 3
    assert tokenizer.tokenizer.decode(prompt_ids) == "<s><|user|>\nwhich answer is the better one?<|end|>\n"
    assert tokenizer.tokenizer.decode(response_ids[runs[1] :]) == "a tie says nothing<|end|>\n"


def test_a_dialogue_needs_the_assistant_and_a_template_that_only_appends(tokenizer, tmp_path):
    with pytest.raises(DataError, match="contains no assistant message"):
        tokenizer.render_turns(USER, [DIALOGUE[1], DIALOGUE[1]])
    forgetful = CHAT_TEMPLATE.replace("{{ m.content }}", "{{ m.content if loop.last or m.role != 'assistant' }}")
    with pytest.raises(DataError, match="rewrites"):
        load(train_tokenizer(tmp_path, forgetful)).render_turns(USER, DIALOGUE)


def test_a_template_that_opens_the_turn_differently_for_generation(tmp_path):
    opened = CHAT_TEMPLATE.replace("<|assistant|>\n{% endif %}", "<|assistant|>\n<think>\n{% endif %}")
    tokenizer = load(train_tokenizer(tmp_path, opened))
    prompt_ids, response_ids = tokenizer.render(USER, ASSISTANT)
    assert tokenizer.tokenizer.decode(prompt_ids).endswith("<|end|>\n")
    assert tokenizer.tokenizer.decode(response_ids) == "<|assistant|>\na tie says nothing<|end|>\n"


def test_a_template_that_rewrites_the_prompt_is_refused(tmp_path):
    counting = "{{ messages | length }}" + CHAT_TEMPLATE
    with pytest.raises(DataError, match="rewrites the prompt once a response follows"):
        load(train_tokenizer(tmp_path, counting)).render(USER, ASSISTANT)


def test_a_template_that_rejects_the_row_says_why(tmp_path):
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="rejects the row: roles must alternate"):
        load(train_tokenizer(tmp_path, strict)).render(USER, ASSISTANT)


def test_messages_without_a_template(tmp_path):
    folder = train_tokenizer(tmp_path, chat_template=None)
    with pytest.raises(DataError, match="has no chat template"):
        load(folder).render(USER, ASSISTANT)
    with pytest.raises(DataError, match=r"model\.tokenizer\.use_chat_template=false"):
        load(folder, use_chat_template=True)


def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    for folder, message in {
        tmp_path / "absent": r"does not exist; set model\.tokenizer\.type",
        tmp_path: "cannot be loaded",
    }.items():
        with pytest.raises(DataError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no tokenizer in"):
        TokenizerSpec(str(empty), False).fingerprint()


def test_the_fingerprint_follows_the_files_that_matter(tokenizer_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tokenizer_folder, folder)
    spec = TokenizerSpec(str(folder), False)
    original = spec.fingerprint()
    assert original == TokenizerSpec(str(tokenizer_folder), False).fingerprint(), "a copy is the same tokenizer"
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text("about")
    assert spec.fingerprint() == original
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert spec.fingerprint() != original
    assert dataclasses.replace(spec, use_chat_template=True).fingerprint() == spec.fingerprint()


def test_padding_is_a_real_token_and_the_vocabulary_covers_every_id(tokenizer):
    assert tokenizer.pad_id == tokenizer.eos_id
    assert tokenizer.vocab_size == 1 + max(tokenizer.tokenizer.get_vocab().values())
