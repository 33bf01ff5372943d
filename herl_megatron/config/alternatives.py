"""Keys that say one thing in two ways, of which the later file or override has the last word."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

HOW_LONG = ("steps", "epochs")
"""Of sections `train`, `sft` and `dpo`: how long the command's loop is."""
_SECTIONS = ("train", "sft", "dpo")


def taking_back(values: DictConfig) -> DictConfig:
    """One of the files or overrides that merge, which takes back what those before it said in the
    other way: `train.steps: 10` ends `train.epochs: 6`. One that says both says both, and is
    refused by the rules with both values."""
    ended: dict[str, dict[str, None]] = {}
    for section in _SECTIONS:
        given = OmegaConf.to_container(values, resolve=False).get(section)  # type: ignore[union-attr]
        if not isinstance(given, dict):
            continue
        said = [key for key in HOW_LONG if given.get(key) is not None]
        if len(said) == 1:
            ended[section] = {key: None for key in HOW_LONG if key not in given}
    merged = OmegaConf.merge(values, ended)
    assert isinstance(merged, DictConfig)
    return merged
