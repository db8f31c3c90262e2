"""The configuration tree. Key paths are NeMo-Aligner's ``gpt_dpo.yaml`` and Megatron's; ``model.rpo`` is ours.

Every default stands here once, or in the classes that ``model.rpo`` and ``model.data`` inherit from
(:mod:`nemo_rpo.em.em_settings`, :mod:`nemo_rpo.data.data_settings`), or ``model`` itself
(:mod:`nemo_rpo.config.experts.expert_settings`). ``null`` means "derived", and the comment says
from what. A choice is a ``Literal`` and a range is part of the type (:mod:`nemo_rpo.config.types`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from nemo_rpo.config.adapters.adapter_settings import PeftConfig
from nemo_rpo.config.experts.expert_settings import ExpertSettings
from nemo_rpo.config.types import Batches, Count, Fraction, NonNegative, Positive, Range, WholeNumber
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.em.em_settings import EMSettings


@dataclass
class DPOTrainerConfig:
    """``trainer.dpo``: steps, epochs, validation and saving, under NeMo-Aligner's names."""

    max_epochs: Count = 1
    max_steps: Annotated[int, Range(-1)] = -1  # -1: max_epochs decides
    val_check_interval: Batches = 0.1  # a float is a share of an epoch, a whole number counts steps; 0: no validation
    save_interval: WholeNumber = 100  # optimizer steps between checkpoints; 0: only at the end
    limit_train_batches: Batches = 1.0  # a float is a share of the epoch, a whole number counts global batches
    limit_val_batches: Batches = 1.0
    gradient_clip_val: NonNegative = 1.0  # 0: no clipping
    # A step whose gradient is NaN or infinite moves nothing. After this many of them in a row the run has diverged: it
    # saves and stops.
    max_skipped_steps: Count = 20


@dataclass
class TrainerConfig:
    """``trainer``: devices, nodes, precision and seed, under Lightning's names."""

    num_nodes: Count = 1
    devices: Count | None = None  # ranks a node; null: what torchrun started
    accelerator: Literal["gpu", "cpu"] = "gpu"
    precision: Literal["bf16", "32"] = "bf16"
    # Kernels whose results do not depend on timing: two equal runs on the same GPUs are equal to the bit, and slower.
    deterministic: bool = False
    log_every_n_steps: Count = 10  # where stderr is no terminal; metrics.jsonl has every step
    distributed_timeout_minutes: Positive = 30.0  # after which a rank gives up on a collective that others do not join
    dpo: DPOTrainerConfig = field(default_factory=DPOTrainerConfig)


@dataclass
class CheckpointCallbackConfig:
    """``exp_manager.checkpoint_callback_params``: which checkpoints a run keeps."""

    # Any metric of a validation; of a named set val/NAME_acc. acc: how often the policy is right, by the gold label
    # where there is one, else by the recorded ones.
    monitor: str = "val_acc"
    mode: Literal["min", "max"] | None = None  # null: min of a loss, max of anything else
    save_top_k: WholeNumber = 3  # best checkpoints kept beside the last one
    save_last: bool = True
    save_hf_on_train_end: bool = True  # the final policy as a Hugging Face folder, beside the checkpoints
    save_adapter_on_train_end: bool = True  # under LoRA, its adapter as a folder of peft's
    save_nemo_on_train_end: bool = False  # and as policy.nemo, for NeMo 1.x up to 2.1 and NeMo-Aligner


@dataclass
class ExpManagerConfig:
    """``exp_manager``: the run's folder, its loggers, its time limit."""

    explicit_log_dir: str | None = None  # null: exp_dir/name
    exp_dir: str = "results"
    name: str = "megatron_gpt_rpo"
    resume_if_exists: bool = True
    resume_ignore_no_checkpoint: bool = True
    async_save: bool = False  # train on while a checkpoint is being written, from a copy of it in host memory
    # SHA-256 of every file of a checkpoint, compared on resume; false: for checkpoints too large to be read twice.
    checkpoint_digests: bool = True
    max_time_per_run: str | None = None  # DD:HH:MM:SS; the run saves and stops before it (status 75)
    version: str | None = None  # a folder below exp_dir/name
    create_tensorboard_logger: bool = False
    summary_writer_kwargs: dict[str, Any] = field(default_factory=dict)  # of TensorBoard's SummaryWriter
    create_wandb_logger: bool = False
    wandb_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    # Made by NeMo's exp_manager alone: they need nemo-toolkit.
    create_mlflow_logger: bool = False
    mlflow_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    create_dllogger_logger: bool = False
    dllogger_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    create_clearml_logger: bool = False
    clearml_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    create_neptune_logger: bool = False
    neptune_logger_kwargs: dict[str, Any] = field(default_factory=dict)
    files_to_copy: list[str] = field(default_factory=list)  # into the run's folder, for the record
    checkpoint_callback_params: CheckpointCallbackConfig = field(default_factory=CheckpointCallbackConfig)


@dataclass
class PretrainedConfig:
    """``pretrained_checkpoint``: where the starting weights come from."""

    # A Hugging Face folder, a .nemo (or the folder that it unpacks to), or a checkpoint of this package; null: fresh
    # weights of the shape that model.* gives.
    restore_from_path: str | None = None


@dataclass
class DPOConfig:
    """``model.dpo``: the preference loss and its options, under NeMo-Aligner's names."""

    ref_policy_kl_penalty: Positive | None = None  # β of the preference loss; null: the loss's own default
    preference_loss: str = "dpo"  # used where model.rpo.base_loss is null
    preference_loss_weight: NonNegative = 1.0
    preference_average_log_probs: bool = False
    sft_loss_weight: NonNegative = 0.0
    sft_average_log_probs: bool | None = None  # null: preference_average_log_probs
    gt_reward_scale: float = 1.0


LogprobPrecision = Literal["bf16", "fp8_tensorwise", "fp8_blockwise", "fp8_mxfp8", "fp8_delayed"]


@dataclass
class RPOConfig(EMSettings):
    """``model.rpo``: the EM's settings (inherited) and how it meets the loss, the data and the reference."""

    enabled: bool = True  # false: the plain preference loss, every label taken at its word
    base_loss: str | None = None  # null: model.dpo.preference_loss
    loss_options: dict[str, Any] = field(default_factory=dict)  # further options of the base loss, e.g. {gamma: 0.5}
    allow_noise_model: bool = False  # let a loss that already models label noise (cDPO, rDPO) run under the EM
    # resident: a second model; swapped: its weights wait on the CPU; cached: its log-probs are computed once;
    # adapters: the model without its adapters, as resident and swapped are too under model.peft.peft_scheme=lora.
    reference: Literal["resident", "swapped", "cached", "adapters"] = "swapped"
    reference_cache: str | None = None  # folder of cached reference log-probs; null: inside the run's folder
    # The reference's weights where they are not the policy's start: what restore_from_path takes; null: the start.
    reference_from: str | None = None
    # π_t of losses that compare with the policy of an earlier round: what restore_from_path takes, kept as
    # `reference` says (`cached` caches the reference alone); null: the reference is the earlier round.
    previous_iterate: str | None = None
    kl_to_start: bool = False  # measure KL(π ‖ π₀) in each validation; on where either of the next two is set
    # π₀, the policy that a loop began with: what restore_from_path takes; null: where this run starts.
    first_policy: str | None = None
    stop_kl: Positive | None = None  # nats a response; the run ends at the first validation that measures more
    # Where annotators start, by id: a run's folder, its annotators.csv, or what `nemo-rpo annotators --csv` writes; who
    # is not in it starts at eta_init.
    believe_from: str | None = None
    carry: Fraction = 0.5  # share of the answers behind what is believed that counts beside the labels of this run
    record: bool = True  # posteriors.parquet, annotators.parquet and validation.parquet in the run's folder
    embedding_width: Count = 6  # of a general preference model's embeddings; even
    # Log-probs of the response tokens: a block of the vocabulary at a time, from all logits of all positions, or by
    # Liger's kernel on a GPU.
    logprob_head: Literal["chunked", "logits", "liger"] = "chunked"
    # Of the linear layers in the forward that gives log-probs, which is the training forward too. bf16: as
    # trainer.precision; fp8_*: Transformer Engine's products with a scale for each tensor or for each block of it.
    logprob_precision: LogprobPrecision = "bf16"
    reference_logprob_precision: LogprobPrecision | None = None  # of the frozen policies; null: as the policy
    allow_asymmetric_precision: bool = False  # let policy and reference differ: margins are then not 0 at the start
    # Most that a response's log-prob may differ from its reference's at step 0, in nats for each of its tokens; null:
    # 1e-4 in fp32, 1e-2 in bf16, 5e-2 in FP8.
    step0_tolerance: Positive | None = None
    step0_link_tolerance: Positive = 1.0  # largest shift of a label's log-odds by rounding alone at step 0

    @property
    def measures_kl(self) -> bool:
        """Whether validations measure the distance from π₀."""
        return self.kl_to_start or self.first_policy is not None or self.stop_kl is not None

    def precisions(self) -> tuple[str, str]:
        """Of the policy's log-probs and of the frozen policies'."""
        return self.logprob_precision, self.reference_logprob_precision or self.logprob_precision


@dataclass
class SchedConfig:
    """``model.optim.sched``: the learning-rate schedule."""

    name: Literal["CosineAnnealing", "linear", "constant"] = "CosineAnnealing"
    warmup_steps: WholeNumber = 10
    constant_steps: WholeNumber = 0  # steps at min_lr after the decay, as NeMo counts them
    min_lr: NonNegative = 0.0
    max_steps: Count | None = None  # null: the run's number of steps


@dataclass
class OptimConfig:
    """``model.optim``: the optimizer, under Megatron's and NeMo's names."""

    name: Literal["distributed_fused_adam", "adam"] = "distributed_fused_adam"  # adamw and fused_adam mean adam
    lr: Positive = 9e-6
    weight_decay: NonNegative = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: Positive = 1e-8
    overlap_grad_sync: bool = False
    overlap_param_sync: bool = False
    sched: SchedConfig = field(default_factory=SchedConfig)


@dataclass
class TokenizerConfig:
    """``model.tokenizer``: the tokenizer, under NeMo's names."""

    # Of huggingface, sentencepiece and megatron's GPT2BPETokenizer and GPTSentencePieceTokenizer there are tokenizers
    # here; everything else, and sentencepiece_legacy, needs nemo-toolkit.
    library: Literal["huggingface", "sentencepiece", "megatron", "tiktoken", "byte-level", "regex"] = "huggingface"
    type: str | None = None  # huggingface: a local folder; null: that of pretrained_checkpoint. megatron: a name
    model: str | None = None  # the file of a sentencepiece model
    vocab_file: str | None = None
    merge_file: str | None = None
    sentencepiece_legacy: bool = False
    use_chat_template: bool = False
    end_responses: bool = True  # a response's end token is part of it; false: verdicts of one token (docs/judging.md)
    # YYYY-MM-DD, for chat templates that print a date; null: the day the run was first started.
    date: str | None = None
    trust_remote_code: bool = False  # let a tokenizer that brings Python code run it


@dataclass
class DataConfig(RowFormat):
    """``model.data``: files, sequence lengths, packing."""

    # train, validation: a file or a list of files. validation may be several sets, {NAME: files, …}, each with figures
    # of its own: split val/NAME in metrics.jsonl. For monitor the first of them is `val` too.
    data_prefix: dict[str, Any] = field(default_factory=dict)
    group_votes: bool = True  # all labels of one pair share one posterior and one forward
    invalid_pairs: Literal["error", "drop"] = "error"  # pairs that are empty, identical or too long
    allow_new_annotators: bool = False  # on resume
    seq_length: Count | None = None  # null: encoder_seq_length
    pad_length_to_multiple_of: Count = 1
    packed_sequence: bool = False  # pairs end to end in micro-batches of packed_sequence_size tokens, without padding
    packed_sequence_size: Count | None = None  # null: micro_batch_size pairs of full length
    # One prompt for both responses of a packed pair. auto: where it saves enough tokens and the attention can do it.
    share_prompts: Literal["auto", "always", "never"] = "auto"
    num_workers: WholeNumber = 2
    cache_dir: str | None = None  # null: .nemo_rpo_cache beside the data
    # Of responses without one, for losses that need rewards; null: such a loss refuses the data.
    default_chosen_reward: float | None = None
    default_rejected_reward: float | None = None


@dataclass
class ProfileConfig:
    """``model.nsys_profile`` and ``model.torch_profile``, under NeMo's names; steps count from 1, as in the log."""

    enabled: bool = False
    start_step: WholeNumber = 10
    end_step: WholeNumber = 10  # the last one
    ranks: list[int] = field(default_factory=lambda: [0])
    gen_shape: bool = False  # the shapes of the operands beside each operation


@dataclass
class ModelConfig(ExpertSettings):
    """``model``: architecture, layout, precision, and every block below it. Mixtures of experts are inherited."""

    micro_batch_size: Count = 1  # pairs
    global_batch_size: Count = 64  # pairs
    seed: WholeNumber = 1234
    tensor_model_parallel_size: Count = 1
    pipeline_model_parallel_size: Count = 1
    virtual_pipeline_model_parallel_size: Count | None = None
    context_parallel_size: Count = 1
    sequence_parallel: bool = False
    activations_checkpoint_granularity: Literal["full", "selective"] | None = None
    activations_checkpoint_method: Literal["uniform", "block"] | None = None
    activations_checkpoint_num_layers: Count | None = None
    encoder_seq_length: Count = 1024
    # Who builds the model, reads its weights and exports it: this package, or Megatron-Bridge, whose architectures are
    # more (docs/megatron_bridge.md).
    provider: Literal["nemo_rpo", "megatron_bridge"] = "nemo_rpo"
    # The architecture: read from the checkpoint where there is one.
    max_position_embeddings: Count | None = None
    num_layers: Count | None = None
    hidden_size: Count | None = None
    ffn_hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_query_groups: Count | None = None
    kv_channels: Count | None = None
    normalization: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    layernorm_epsilon: Positive = 1e-5
    activation: Literal["swiglu", "gelu"] = "swiglu"
    bias: bool = False
    qkv_bias: bool = False
    qk_layernorm: bool = False
    position_embedding_type: Literal["rope", "learned_absolute"] = "rope"
    rotary_base: Positive = 10000.0
    rotary_percentage: Annotated[float, Range(0, 1, open_low=True)] = 1.0
    share_embeddings_and_output_weights: bool = False
    make_vocab_size_divisible_by: Count = 128
    init_method_std: Positive = 0.02
    hidden_dropout: Fraction = 0.0
    attention_dropout: Fraction = 0.0
    dpo: DPOConfig = field(default_factory=DPOConfig)
    rpo: RPOConfig = field(default_factory=RPOConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    # Of a process that is started under `nsys profile --capture-range cudaProfilerApi`; on GPUs.
    nsys_profile: ProfileConfig = field(default_factory=ProfileConfig)
    torch_profile: ProfileConfig = field(default_factory=ProfileConfig)  # profile/rank<R>.json in the run's folder

    @property
    def reference_in_force(self) -> str:
        """``rpo.reference``; under LoRA a live one is ``adapters``, without a second model and without a swap."""
        live = self.rpo.reference != "cached"
        return "adapters" if self.peft.lora and live else self.rpo.reference


@dataclass
class RunConfig:
    """The root of the tree."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    exp_manager: ExpManagerConfig = field(default_factory=ExpManagerConfig)
    pretrained_checkpoint: PretrainedConfig = field(default_factory=PretrainedConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
