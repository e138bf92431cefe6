//! The zoo: tiny programs that hold one kernel resource each and check themselves after restore.
