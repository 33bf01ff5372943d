"""A user's checks in a process of their own: whatever they do there costs a verdict, nothing else.

Three processes:

    this one      UserModules -> ChildProcess: asks, waits with a deadline, ends what misbehaves
      warden      forks children, adopts and ends all that they start; holds nothing of the user's
        child     imports the modules, runs the checks; under limits of memory and threads

The child stays between calls, so that a call costs a fraction of a millisecond. After a time-out
or its death there is a new one, started outside of every check's limit. Every limit is enforced by
an end or by a note that the check cannot reach, never by an exception alone: a check with an
`except Exception` would make a verdict of that.
"""
