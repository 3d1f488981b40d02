"""Bundles where they run: on devices, over the system's ssh and rsync, and in a browser here.

`deploy` rolls out without an agent, `state` reads back what is there, `on_device` and `folder` are
what the device's own Python runs meanwhile.
"""
