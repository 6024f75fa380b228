//! The seam, without sockets: the real writer, hub and reader, driven step by step in every order.
//!
//! `world` drives the state machines over the model store; `watch` judges what comes out by the promises alone, `answers` what
//! publishers are told, both by `facts`; `search` tries every
//! order of small scenarios, `random` many long ones. What holds: a run is a function of its choices, so each failure prints what
//! replays it.

mod answers;
mod facts;
mod random;
mod scenarios;
mod search;
mod watch;
mod wire;
mod world;
