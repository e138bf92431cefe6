//! One module per program. A new one costs a file, a line here, and a row in `table.rs`.
mod counter;

macro_rules! dispatch {
    ($($circle:ident $program:ident $($option:literal)*;)*) => {
        /// Runs the program; false if there is none of that name.
        pub(crate) fn run(name: &str) -> bool {
            match name {
                $(stringify!($program) => $program::main(),)*
                _ => return false,
            }
            true
        }
    };
}
zoo::programs!(dispatch);
