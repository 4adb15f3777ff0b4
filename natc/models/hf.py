"""NAT and DiNAT as models of Transformers, where NAT is gone and DiNAT needs NATTEN.

Importing this module registers them with Transformers' Auto classes; it needs transformers.
`from_pretrained` reads folders and models on the hub such as "shi-labs/nat-mini-in1k-224", and
`save_pretrained` writes the layout that Transformers always had.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)

from natc.models import files, layouts, settings
from natc.models.checkpoint import load
from natc.models.nat import NAT


class NatConfig(PretrainedConfig):
    """The configuration of a NAT, with the names and defaults of Transformers.

    Stages are named "stem", "stage1", "stage2", ...; a backbone returns the maps of the
    stages in `out_features`, by default the last one.
    """

    model_type = "nat"

    def __init__(
        self,
        patch_size: int = 4,
        num_channels: int = 3,
        embed_dim: int = 64,
        depths: Sequence[int] = (3, 4, 6, 5),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        kernel_size: int = 7,
        dilations: Sequence[Sequence[int]] | None = None,
        mlp_ratio: float = 3.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        layer_scale_init_value: float = 0.0,
        layer_norm_eps: float = 1e-5,
        hidden_act: str = "gelu",
        out_features: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.embed_dim = embed_dim
        self.depths = list(depths)
        self.num_heads = list(num_heads)
        self.kernel_size = kernel_size
        self.dilations = None if dilations is None else [list(level) for level in dilations]
        self.mlp_ratio = mlp_ratio
        self.qkv_bias = qkv_bias
        self.drop_path_rate = drop_path_rate
        self.layer_scale_init_value = layer_scale_init_value
        self.layer_norm_eps = layer_norm_eps
        self.hidden_act = hidden_act
        self.hidden_size = embed_dim * 2 ** (len(self.depths) - 1)
        self.stage_names = ["stem", *(f"stage{i}" for i in range(1, len(self.depths) + 1))]
        self.out_features = list(out_features or self.stage_names[-1:])
        super().__init__(**options)


class DinatConfig(NatConfig):
    """The configuration of a DiNAT: a NAT's, with `dilations` for each block."""

    model_type = "dinat"

    # Without one, Transformers generates a constructor that knows no fields.
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class _Pretrained(PreTrainedModel):
    """The base class of the models: a NAT inside, read and written in Transformers' layout."""

    config_class: type[NatConfig] = NatConfig
    base_model_prefix = "nat"
    main_input_name = "pixel_values"

    def __init__(
        self, config: NatConfig, *, num_classes: int = 0, map_norms: bool = False
    ) -> None:
        super().__init__(config)
        arguments = settings.from_hf_config(config.to_dict())
        self.network = NAT(
            **arguments,
            in_chans=config.num_channels,
            num_classes=num_classes,
            map_norms=map_norms,
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Leave weights alone: the network has initialized them."""

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], **options: Any) -> Any:
        """Return the model in a folder or on the hub, in evaluation mode.

        options: of the configuration, such as `num_labels` (another number gets a new head) or
        `out_features`; or `config`, a whole one.
        """
        content = files.read(os.fspath(source))
        config = options.pop("config", None)
        if config is None:
            fields = {k: v for k, v in (content.config or {}).items() if k != "model_type"}
            if "num_labels" in options:
                fields.pop("id2label", None)
                fields.pop("label2id", None)
            config = cls.config_class(**{**fields, **options})
        model = cls(config)
        load(os.fspath(source), model=model.network)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write config.json and model.safetensors with Transformers' names."""
        weights = self.network.state_dict()
        prefix = "" if self.network.map_norms else f"{self.config.model_type}."
        config = self.config.to_dict()
        config["architectures"] = [type(self).__name__]
        files.write_folder(Path(folder), config, layouts.to_hf(weights, prefix))


class NatModel(_Pretrained):
    """A NAT without head."""

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Return the normalized last map `[batch, height, width, channels]` and its mean."""
        final = self.network.forward_features(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=final, pooler_output=final.mean(dim=(1, 2))
        )


class NatForImageClassification(_Pretrained):
    """A NAT with a linear classifier on the mean of its last map."""

    def __init__(self, config: NatConfig) -> None:
        super().__init__(config, num_classes=config.num_labels)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """Return `logits` `[batch, num_labels]`, and with `labels` the cross entropy as `loss`."""
        logits = self.network(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)


class NatBackbone(_Pretrained):
    """A NAT that returns the maps of `config.out_features`, each normalized."""

    def __init__(self, config: NatConfig) -> None:
        super().__init__(config, map_norms=True)
        self.out_indices = [config.stage_names.index(name) for name in config.out_features]
        widths = [config.embed_dim, *(info["num_chs"] for info in self.network.feature_info)]
        self.channels = [widths[index] for index in self.out_indices]

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:
        """Return `feature_maps`, `[batch, channels, height, width]` of each stage asked for."""
        maps = self.network.forward_intermediates(pixel_values, intermediates_only=True)
        return BackboneOutput(feature_maps=tuple(maps[index - 1] for index in self.out_indices))


class DinatModel(NatModel):
    """A DiNAT without head."""

    config_class = DinatConfig
    base_model_prefix = "dinat"


class DinatForImageClassification(NatForImageClassification):
    """A DiNAT with a linear classifier on the mean of its last map."""

    config_class = DinatConfig
    base_model_prefix = "dinat"


class DinatBackbone(NatBackbone):
    """A DiNAT that returns the maps of `config.out_features`, each normalized."""

    config_class = DinatConfig
    base_model_prefix = "dinat"


for _config, _models in (
    (NatConfig, (NatModel, NatForImageClassification, NatBackbone)),
    (DinatConfig, (DinatModel, DinatForImageClassification, DinatBackbone)),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    for _auto, _class in zip(
        (AutoModel, AutoModelForImageClassification, AutoBackbone), _models, strict=True
    ):
        _auto.register(_config, _class, exist_ok=True)
