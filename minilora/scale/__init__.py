"""More than one machine, on engines that exist: torchrun, Flower, Ray Serve.

Ours is what they cannot know: that only A and B travel, that the loss is counted in answer tokens,
and that averaging A and B separately is wrong.

In reading order:

Imports the library's wings, the hub and serving. Their own libraries are the extra ``[scale]``.
"""

__all__: list[str] = []
