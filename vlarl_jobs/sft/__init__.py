"""Supervised fine-tuning on demonstrations, by OpenVLA's recipe (`vlarl sft`).

datasets ──▶ samples ──▶ pixels ──▶ [perception: towers say where things are] ──▶ RUN/pretrained
                │                                                                    │
                └──▶ imitation: the next action token, over the 256 ids ◀────────────┘
                          │
                          └──▶ RUN/checkpoint, which `vlarl serve policy` serves
"""
