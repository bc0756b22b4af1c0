"""Scripted experts: they see the simulator's state and act as a demonstrator would.

An expert maps what the scene is now to an action, nothing else: no timers and no plan, so that a
policy that sees a frame can learn what the expert does. It remembers no more than which grasps have
failed and where a thing stood before it was lifted.
"""
