"""The robotic process reward model: labels of demonstrations, and the training of a model on them.

`labels.py` finds which actions led somewhere, `reading.py` makes samples of them and of what went
wrong, `objective.py` is the loss, `backbones.py` what models can learn by it, `card.py` what the
trained one is worth. The stages run on `vlarl/learning/fit.py`, as fine-tuning does.
"""
