//! Ends what nobody works on, on AWS Lambda.

use strongroom_fleet::QueueName;

fn main() -> Result<(), strongroom_runtime::Error> {
    strongroom_runtime::main(QueueName::Checks, strongroom_reconciler::handle)
}
