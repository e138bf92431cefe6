//! The list of programs, in one place for the binary that runs them and the tests that take them on trips.

/// Calls `$then!` with a row per program: `circle name options;`.
/// Circles: `first` must work from the first release on, `beyond` may be on the list of expected failures,
/// `refused` holds something that no dump may accept. Options go to dump and restore.
#[macro_export]
macro_rules! programs {
    ($then:ident) => {
        $then! {
            first counter;
        }
    };
}
