"""Every recipe made small: settings with which it ends in seconds, on any backend."""

ANSWERED = {"batch_size": 16, "held_out": 8, "graded": 4, "max_tokens": 8}
PLAYED = {"problems": 8, "batch_size": 4, "group_size": 4, "graded": 4, "max_tokens": 8}
TEACHER = {"teacher_dataset": "builtin:sort[:64]"}

SMALL_SETTINGS = {
    "sft": {**ANSWERED, "dataset": "builtin:sort[:64]"},
    "chat_sft": {**ANSWERED, "dataset": "builtin:talks[:64]"},
    "pretrain": {
        **ANSWERED, "dataset": "builtin:pretrain[:256]", "hidden": 32, "layers": 1, "batch_size": 64, "per_task": 2,
        "max_tokens": 4,
    },
    "dpo": {**ANSWERED, "dataset": "builtin:sort-pairs[:64]"},
    "reward_model": {**ANSWERED, "dataset": "builtin:sort-pairs[:64]"},
    "rl_math": {**PLAYED, "env": "nim", "objective": "grpo", "num_substeps": 2, "max_steps_off_policy": 1, "mismatch_alarm": 1e-12},
    "rlhf": {**PLAYED, "sft_dataset": "builtin:reworded[:64]", "pair_dataset": "builtin:reworded-pairs[:64]"},
    "rl_tools": {**PLAYED, "sft_dataset": "builtin:tools[:16]", "max_tokens": 24},
    "rl_code": {**PLAYED, "sft_dataset": "builtin:code[:64]", "max_tokens": 24},
    "distill_on_policy": {**PLAYED, **TEACHER},
    "prompt_distillation": {**ANSWERED, "dataset": "builtin:served[:64]", "teacher_dataset": "builtin:obedient[:64]"},
    "distill_off_policy": {**ANSWERED, **TEACHER, "dataset": "builtin:sort[:64]"},
    "feedback_loop": {
        **ANSWERED, "reference_size": 64, "recent_size": 64, "reference_traffic": {"builtin:parity": 1},
        "recent_traffic": {"builtin:parity": 1, "builtin:count_letters": 1}, "graded": 8,
    },
}  # fmt: skip
