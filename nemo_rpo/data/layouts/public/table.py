"""The layouts of label tools, platforms and public data sets, and how each is recognised."""

from __future__ import annotations

from nemo_rpo.data.layouts.layout import Layout, marks, names
from nemo_rpo.data.layouts.public import (
    arena,
    argilla,
    gather,
    judges,
    label_studio,
    platforms,
    prodigy,
    scored,
    studies,
)

_PRISM = names("conversation_id user_id turn user_prompt model_response score if_chosen")

# In the order of detection. Those of them that hold one vote a row have its annotator under their own name.
PUBLIC: dict[str, Layout] = {
    "label_studio": Layout(
        label_studio.task,
        marks("data annotations"),
        label_studio.READ | {"id"},
        {"annotations": label_studio.OF_ANNOTATION | {"id"}},
        labelled=False,
        ignored=label_studio.ignored,
        public=True,
    ),
    "prodigy": Layout(
        prodigy.choice,
        marks("options accept", "options answer"),
        prodigy.READ | names("prompt text instruction question"),
        {"options": names("id text")},
        labelled=False,
        ignored=prodigy.ignored,
        public=True,
    ),
    "argilla": Layout(
        argilla.record_of,
        labelled=False,
        recognises_more=argilla.recognises,
        reads_more=argilla.reads,
        ignored=argilla.ignored,
        public=True,
    ),
    "arena": Layout(
        arena.battle, marks("conversation_a conversation_b winner"), arena.READ, labelled=False, public=True
    ),
    "community_alignment": Layout(
        studies.community_alignment,
        marks("first_turn_prompt first_turn_preferred_response"),
        studies.COMMUNITY_ALIGNMENT,
        labelled=False,
        public=True,
    ),
    "prism": Layout(
        studies.prism,
        marks("conversation_id user_prompt model_response if_chosen"),
        names("utterances"),
        {"utterances": _PRISM},
        labelled=False,
        gather=gather.conversations,
        public=True,
    ),
    "summarize_from_feedback": Layout(
        studies.summaries, marks("info summaries choice"), studies.SUMMARIES, labelled=False, public=True
    ),
    "coval": Layout(
        studies.coval,
        marks(
            "annotator_id prompt responses ranking",
            "annotator_id prompt responses rankings",
            "annotator_id prompt responses ranking_personal",
            "annotator_id prompt responses ranking_world",
        ),
        studies.COVAL,
        {"responses": names("label response_index id text content response messages")},
        labelled=False,
        public=True,
    ),
    "crowd_kit": Layout(
        platforms.crowd_kit,
        marks("worker left right label"),
        platforms.CROWD_KIT,
        labelled=False,
        public=True,
    ),
    "distilabel": Layout(
        judges.distilabel,
        marks("generations ratings", "generations rankings", "generations ranks"),
        names("instruction prompt generations ratings rankings ranks model_name"),
        labelled=False,
        ignored=judges.without_rating,
        public=True,
    ),
    "alpaca_eval": Layout(
        judges.alpaca_eval,
        marks("instruction output_1 output_2 preference"),
        names("instruction output_1 output_2 preference annotator"),
        labelled=False,
        public=True,
    ),
    "helpsteer3": Layout(
        scored.helpsteer3,
        marks("context response1 response2 overall_preference"),
        names("context response1 response2 overall_preference individual_preference domain"),
        {"individual_preference": names("score")},
        labelled=False,
        public=True,
    ),
    "helpsteer2_preference": Layout(
        scored.helpsteer2_preference,
        marks("prompt response_1 response_2 preference_strength"),
        names("prompt response_1 response_2 preference_strength"),
        labelled=False,
        public=True,
    ),
    "helpsteer2": Layout(
        scored.helpsteer2,
        marks("prompt response helpfulness correctness"),
        names("utterances"),
        {"utterances": names("prompt response helpfulness")},
        labelled=False,
        gather=gather.same_prompt,
        public=True,
    ),
    "ultrafeedback": Layout(
        judges.ultrafeedback,
        marks("instruction completions"),
        names("instruction completions"),
        {"completions": names("response overall_score fine-grained_score")},
        labelled=False,
        public=True,
    ),
    "nectar": Layout(
        judges.nectar,
        marks("prompt answers"),
        names("prompt answers"),
        {"answers": names("answer rank")},
        labelled=False,
        public=True,
    ),
    "webgpt": Layout(
        scored.webgpt,
        marks("question answer_0 answer_1 score_0 score_1"),
        names("question answer_0 answer_1 score_0 score_1"),
        labelled=False,
        public=True,
    ),
    "shp": Layout(
        scored.shp,
        marks("history human_ref_A human_ref_B labels"),
        names("history human_ref_A human_ref_B labels score_ratio domain"),
        labelled=False,
        public=True,
    ),
}

# Our own row a vote; told last, since its names are common ones.
VOTE_ROWS = Layout(
    platforms.vote_rows,
    labelled=False,
    recognises_more=platforms.recognises,
    reads_more=platforms.reads,
    ignored=platforms.ignored,
)
