"""What a judge is asked and how its answers are read: pure functions, no network.

`formats.py` has the formats, `units.py` splits a rubric into requests, `wording.py` has the words
that all formats share, `guard.py` makes a response harmless to quote, `questions.py` makes the
request of them, `answers.py` reads and checks what comes back. `grader_prompt.py` asks as a
benchmark does.
"""
