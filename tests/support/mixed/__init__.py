"""Mixed work: a bit of everything, on all media at once, again and again.

Each operation (`objects`, `lives`) is a coroutine of one `World`, checks what it gets, and leaves
nothing behind. `run` does them at random and says after each round what is held; `flat` judges.
"""
