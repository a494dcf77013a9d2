"""What the processes of ``tests.support.program`` have imported when they begin."""

import sklearn.datasets  # noqa: F401
import torch._dynamo
import torch.distributed.run  # noqa: F401
