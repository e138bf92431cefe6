//! CRIU's RPC: the schema, SEQPACKET framing, and a client.
#![forbid(unsafe_code)]
