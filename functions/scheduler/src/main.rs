//! Decides what is due, once a minute, on AWS Lambda.

use strongroom_fleet::QueueName;

fn main() -> Result<(), strongroom_runtime::Error> {
    strongroom_runtime::main(QueueName::Ticks, strongroom_scheduler::handle)
}
