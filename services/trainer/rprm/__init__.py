"""The robotic process reward model: labels of demonstrations, and the training of a judge on them.

`labels.py` finds which actions led somewhere, `reading.py` makes samples of them and of what went
wrong, `judgement.py` is the loss, `card.py` what the trained model is worth. The stages run on
`services/trainer/sft/fit.py`, as fine-tuning does.
"""
