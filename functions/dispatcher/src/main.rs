//! Takes requests, on AWS Lambda.

use strongroom_fleet::QueueName;

fn main() -> Result<(), strongroom_runtime::Error> {
    strongroom_runtime::main(QueueName::Requests, strongroom_dispatcher::handle)
}
