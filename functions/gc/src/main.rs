//! Collects garbage, on AWS Lambda.

use strongroom_fleet::QueueName;

fn main() -> Result<(), strongroom_runtime::Error> {
    strongroom_runtime::main(QueueName::Gc, strongroom_gc::handle)
}
