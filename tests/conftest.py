import torch

torch.set_num_threads(1)  # of small tensors one thread is faster than many, and test processes share the cores
