"""The sampling program.

instructions.py   values and instructions, and what they mean
program.py        Program: those of one model
format.py         instructions as text
"""
