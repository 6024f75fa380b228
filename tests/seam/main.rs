//! The seam, without sockets: the real writer, hub and reader, driven step by step in every order, through crashes and failing disks.
//!
//! `world` drives the state machines over the model store; `watch` judges what comes out by the promises alone, `answers` what
//! publishers are told, both by `facts`, which is told what was written and what a crash has undone; `search` tries every order of small
//! scenarios, `random` draws the choices of the simulation from a seed, and `simulation` runs many seeds. What holds: a run is a function
//! of its choices, so each failure prints what replays it.

mod answers;
mod facts;
mod random;
mod scenarios;
mod search;
mod simulation;
mod watch;
mod wire;
mod world;
