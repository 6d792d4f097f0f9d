"""Names of preference tuning in other trainers (TRL, Axolotl, LLaMA-Factory): the field here, or why there is none."""

_SECTION = "spec.preference"
_REWARDS = "training on rewards is not supported; the task preference learns from pairs of answers"
_REFERENCE = "the reference is the model before training; the plan decides when its values are computed"
_ONE_LOSS = "the loss of preference tuning has one part; see spec.preference.loss_type"

PREFERENCE_FIELDS: dict[str, str] = {
    **dict.fromkeys(("dpo", "kto", "orpo", "simpo", "dpo_config", "kto_config", "preference_tuning"), _SECTION),
    **dict.fromkeys(
        ("rl_beta", "pref_beta", "dpo_beta", "kto_beta", "orpo_beta", "simpo_beta", "orpo_alpha"),
        "spec.preference.beta",
    ),
    **dict.fromkeys(("pref_loss", "dpo_loss_type", "rl_loss_type", "preference_loss"), "spec.preference.loss_type"),
    **dict.fromkeys(("dpo_label_smoothing", "cdpo_eps", "rl_label_smoothing"), "spec.preference.label_smoothing"),
    **dict.fromkeys(("gamma", "simpo_margin", "gamma_beta_ratio"), "spec.preference.simpo_gamma"),
    **dict.fromkeys(("kto_chosen_weight", "kto_desirable_weight"), "spec.preference.desirable_weight"),
    **dict.fromkeys(("kto_rejected_weight", "kto_undesirable_weight"), "spec.preference.undesirable_weight"),
}

PREFERENCE_REASONS: dict[str, str] = {
    **dict.fromkeys(("reward_model", "reward_funcs", "reward_weights", "num_generations", "trl"), _REWARDS),
    **dict.fromkeys(
        (
            "ref_model",
            "ref_model_adapters",
            "ref_adapter_name",
            "reference_model",
            "precompute_ref_log_probs",
            "precompute_ref_batch_size",
            "sync_ref_model",
            "ref_model_mixup_alpha",
            "ref_model_sync_steps",
        ),
        _REFERENCE,
    ),
    **dict.fromkeys(
        (
            "rpo_alpha",
            "pref_ftx",
            "loss_weights",
            "cpo_alpha",
            "ld_alpha",
            "f_divergence_type",
            "f_alpha_divergence_coef",
            "discopop_tau",
            "use_weighting",
        ),
        _ONE_LOSS,
    ),
    "disable_dropout": "preference tuning always trains without dropout",
}
