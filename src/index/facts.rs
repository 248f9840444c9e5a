//! The typed records above the index: which facts there are, and what their values look like.
