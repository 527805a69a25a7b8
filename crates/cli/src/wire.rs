//! The only naming of concrete communicators and devices: how ranks meet, what they compute on, and how they part.
//!
//! | file | is |
//! |---|---|
//! | `wire/world.rs` | the ranks' world, from their meeting to their parting |
//! | `wire/machine.rs` | what a rank can ask of its machine |
//! | `wire/place.rs` | what the ranks compute on, decided from what all of them see |
//! | `wire/equipment.rs` | a rank's device, and the communicator for tensors that lie there |

mod equipment;
mod machine;
mod place;
mod world;

pub use self::equipment::{equip, equip_alone, Equipment, Survey};
pub use self::place::Place;
pub use self::world::{launched, launched_rank, World};
