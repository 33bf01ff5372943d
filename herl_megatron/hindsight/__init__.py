"""HeRL's hindsight: which failures become experience, what the revision prompt says, the bonus."""
