//! Every zoo program through its trips: dumped, gone, restored with the same processes, checked by itself; twice.
use zoo::harness::{Case, run, run_refused};

macro_rules! tests {
    ($($circle:ident $program:ident $($option:literal)*;)*) => {
        $(tests!(@one $circle $program $($option)*);)*
    };
    (@one refused $program:ident $($option:literal)*) => {
        #[test]
        fn $program() {
            run_refused(&Case::new(stringify!($program)).options(&[$($option),*]));
        }
    };
    (@one apart $program:ident $($option:literal)*) => {};
    (@one $circle:ident $program:ident $($option:literal)*) => {
        #[test]
        fn $program() {
            run(&Case::new(stringify!($program)).options(&[$($option),*]));
        }
    };
}
zoo::programs!(tests);
