"""Trainers: how a network is trained through nnU-Net.

``base`` holds all that we know of nnU-Net's trainer, and there is one small module a method.
"""
