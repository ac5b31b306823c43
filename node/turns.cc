#include "node/turns.h"

#include <utility>

namespace lamina::node {

Turns::Turn::Turn(Turns& turns, std::string id) : turns_(turns), id_(std::move(id)) {
  MutexLock lock(turns_.mutex_);
  while (!turns_.taken_.insert(id_).second) turns_.ended_.Wait(turns_.mutex_);
}

Turns::Turn::~Turn() {
  MutexLock lock(turns_.mutex_);
  turns_.taken_.erase(id_);
  turns_.ended_.NotifyAll();
}

}  // namespace lamina::node
