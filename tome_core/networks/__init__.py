"""Networks that timm lacks, built from its parts.

Sound: `SpectrogramViT` is AST; AudioMAE is timm's own ViT. Video: `VideoViT` is VideoMAE, MAE-ST
and ViViT, whose tokens all attend to each other; `VJepa2` is V-JEPA 2, of rotary positions and an
`AttentivePooler`. Their sizes are architectures of timm (``audio_architectures``,
``video_architectures``, ``vjepa2_architectures``).
"""
