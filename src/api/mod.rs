//! HTTP: what clients say, turned into calls of the rules, and what the rules say, turned into answers.

pub mod cors;
pub mod health;
pub mod observe;
