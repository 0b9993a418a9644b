"""Search spaces: genes, policies, and the rules that derive a space from a network."""

from automl_compress.space.genes import KINDS, LAYER_KINDS, Gene, Kind, Value
from automl_compress.space.policy import Policy
from automl_compress.space.rules import ChannelRule, Override, SpaceRules, load_rules
from automl_compress.space.search_space import Indices, SearchSpace, counted

__all__ = [
    "KINDS",
    "LAYER_KINDS",
    "ChannelRule",
    "Gene",
    "Indices",
    "Kind",
    "Override",
    "Policy",
    "SearchSpace",
    "SpaceRules",
    "Value",
    "counted",
    "load_rules",
]
