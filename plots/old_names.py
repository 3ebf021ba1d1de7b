"""Options that have another name now: run folders of before still have the old one in their config.json."""

OLD_NAMES = {
    "weight": "loss_norm",
    "lam": "gae_lambda",
    "aux_lr": "critic_lr",
    "aux_warmup": "critic_warmup",
    "is_cap": "tis_cap",
    "drop_dead": "filter_groups",
    "band_low": "min_pass_rate",
    "band_high": "max_pass_rate",
    "resample": "max_resamples",
    "reward_mode": "rewards",
    "overlong": "rewards",
}
CONTROLS = {"format_only": "format", "random": "random", "inverted": "inverted"}


def current_names(settings: dict) -> dict:
    """The settings of a run folder under the names that the options have now."""
    settings = dict(settings)
    mode, overlong = settings.pop("reward_mode", None), settings.pop("overlong", None)
    if mode or overlong:
        task = "task,overlong" if overlong == "penalise" else "task"
        settings["rewards"] = CONTROLS.get(mode, task)
    if overlong == "mask":
        settings["mask_truncated"] = True
    return {OLD_NAMES.get(name, name): value for name, value in settings.items()}
