//! System calls that std and rustix do not offer safely. All `unsafe` of the crate lives here.
