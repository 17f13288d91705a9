// What threads of the emulated device call: they meet, wait, name shared memory, and give work to the copy engine and
// the tensor cores.
#include <cstring>

#include "machine_parts.h"

namespace fastnn {
namespace emulation {

// ------------------------------------------------------------------------------ meetings

unsigned block_threads() { return unsigned(running->in->fibers.size()); }

__attribute__((noinline)) void meet_warp(uint32_t mask, const char* what, void* mine, Combine combine) {
  Block& block = *running->in;
  const unsigned me = lane();
  const void* place = __builtin_return_address(0);
  if (!(mask >> me & 1))
    fault("%s: its own lane %u is not in the mask 0x%x%s", what, me, mask, source_line(place).c_str());
  if (mask & block.ended_lanes[warp()])
    fault("%s: the mask 0x%x names lanes 0x%x, which have ended or do not exist%s", what, mask,
          mask & block.ended_lanes[warp()], source_line(place).c_str());
  auto& meetings = block.meetings[warp()];
  size_t at = 0;
  while (at < meetings.size() && (meetings[at].mask != mask || meetings[at].arrived >> me & 1)) ++at;
  if (at == meetings.size()) meetings.push_back({what, mask, 0, {}});
  Meeting& meeting = meetings[at];
  if (strcmp(meeting.what, what) != 0)
    fault("%s, while other lanes of its mask 0x%x wait at %s%s", what, mask, meeting.what, source_line(place).c_str());
  meeting.lanes[me] = mine;
  meeting.arrived |= 1u << me;
  if (meeting.arrived != mask) return stop(State::Blocked, what, place);
  Meeting complete = meeting;
  meetings.erase(meetings.begin() + ptrdiff_t(at));
  if (combine) combine(complete.lanes, mask);
  const unsigned first = running->linear - me;
  for (unsigned other = 0; other < kWarpThreads; ++other)
    if (other != me && mask >> other & 1) block.fibers[first + other].state = State::Ready;
}

__attribute__((noinline)) void meet_warpgroup(const char* what, void* mine, CombineGroup combine) {
  Block& block = *running->in;
  const unsigned group = running->linear / kWarpgroupThreads, me = running->linear % kWarpgroupThreads;
  const void* place = __builtin_return_address(0);
  if ((group + 1) * kWarpgroupThreads > block.fibers.size())
    fault("%s: its warpgroup has fewer than 128 threads", what);
  for (unsigned i = 0; i < 4; ++i)
    if (block.ended_lanes[4 * group + i]) fault("%s: a thread of its warpgroup has ended", what);
  GroupMeeting& meeting = block.group_meetings[group];
  if (meeting.arrived && strcmp(meeting.what, what) != 0)
    fault("%s, while others of its warpgroup wait at %s%s", what, meeting.what, source_line(place).c_str());
  meeting.what = what;
  meeting.threads[me] = mine;
  if (++meeting.arrived != kWarpgroupThreads) return stop(State::Blocked, what, place);
  meeting.arrived = 0;
  if (combine) combine(meeting.threads);
  for (unsigned other = 0; other < kWarpgroupThreads; ++other)
    if (other != me) block.fibers[group * kWarpgroupThreads + other].state = State::Ready;
}

namespace {
Barrier& arrive(int id, unsigned threads, const char* what) {
  Block& block = *running->in;
  if (id < 0 || id >= kBarriers) fault("%s: barrier %d, but there are %d", what, id, kBarriers);
  if (threads == 0 || threads % kWarpThreads || threads > rounded(block.fibers.size(), kWarpThreads))
    if (threads != block.fibers.size())
      fault("%s: barrier %d of %u threads in a block of %zu", what, id, threads, block.fibers.size());
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived && barrier.expected != threads)
    fault("%s: barrier %d is waited for by %u threads, others came for one of %u", what, id, threads, barrier.expected);
  if (id == 0 && threads == block.fibers.size() && block.alive != threads)
    fault("%s: %zu threads of the block have ended", what, block.fibers.size() - block.alive);
  barrier.expected = threads;
  barrier.what = what;
  ++barrier.arrived;
  return barrier;
}

// Lets the waiters go when the last one has come.
bool complete(Barrier& barrier) {
  if (barrier.arrived < barrier.expected) return false;
  for (Fiber* waiter : barrier.waiters) waiter->state = State::Ready;
  barrier.waiters.clear();
  barrier.arrived = 0;
  return true;
}
}  // namespace

__attribute__((noinline)) void barrier_sync(int id, unsigned threads, const char* what) {
  Barrier& barrier = arrive(id, threads, what);
  if (complete(barrier)) return;
  barrier.waiters.push_back(running->fiber);
  stop(State::Blocked, what, __builtin_return_address(0));
}

void barrier_arrive(int id, unsigned threads) { complete(arrive(id, threads, "barrier arrive")); }

__attribute__((noinline)) void cluster_sync() {
  Cluster& cluster = *running->in->cluster;
  if (++cluster.arrived == cluster.threads) {
    for (Fiber* waiter : cluster.waiters) waiter->state = State::Ready;
    cluster.waiters.clear();
    cluster.arrived = 0;
    return;
  }
  cluster.waiters.push_back(running->fiber);
  stop(State::Blocked, "cluster barrier", __builtin_return_address(0));
}

// ------------------------------------------------------------------------------ waiting

__attribute__((noinline)) void pause(bool first, const char* what) {
  running->fiber->waited_before = !first;
  stop(State::Paused, what, __builtin_return_address(0));
}

__attribute__((noinline)) void wait_until(bool (*ready)(const void*), const void* state, const char* what) {
  if (ready(state)) return;
  running->fiber->ready = ready;
  running->fiber->ready_state = state;
  stop(State::Waiting, what, __builtin_return_address(0));
}

void defer(std::function<void()> work) { running->in->deferred.push_back(std::move(work)); }

// ------------------------------------------------------------------------------ shared memory

unsigned char* dynamic_shared() { return running->in->dynamic; }
size_t dynamic_shared_bytes() { return launched.shape->shared_bytes; }

uint32_t shared_address(const void* pointer) {
  auto bytes = static_cast<const unsigned char*>(pointer);
  if (bytes >= __start_fastnn_shared && bytes < __stop_fastnn_shared)
    return kStaticWindow + uint32_t(bytes - __start_fastnn_shared);
  const unsigned char* dynamic = running->in->dynamic;
  if (!dynamic || bytes < dynamic || bytes > dynamic + launched.shape->shared_bytes)
    fault("%p is not in the shared memory of this block", pointer);
  return kDynamicWindow + uint32_t(bytes - dynamic);
}

void* shared_pointer(uint32_t address, size_t bytes) {
  if (address >= kStaticWindow && address + bytes <= kStaticWindow + static_shared_bytes())
    return __start_fastnn_shared + (address - kStaticWindow);
  if (address < kDynamicWindow || address + bytes > kDynamicWindow + launched.shape->shared_bytes)
    fault("address 0x%x (%zu bytes) is outside the %zu bytes of dynamic shared memory", address, bytes,
          launched.shape->shared_bytes);
  return running->in->dynamic + (address - kDynamicWindow);
}

void* cluster_pointer(const void* pointer, unsigned rank) {
  const Cluster& cluster = *running->in->cluster;
  if (rank >= cluster.blocks.size()) fault("block %u of a cluster of %zu", rank, cluster.blocks.size());
  auto bytes = static_cast<const unsigned char*>(pointer);
  const unsigned char* dynamic = running->in->dynamic;
  if (!dynamic || bytes < dynamic || bytes >= dynamic + launched.shape->shared_bytes)
    fault("only dynamic shared memory is seen by other blocks of the cluster");
  return cluster.blocks[rank]->dynamic + (bytes - dynamic);
}

// ------------------------------------------------------------------------------ copies and products

void async_copy(void* dst, const void* src, size_t bytes, size_t valid_bytes) {
  if (uintptr_t(dst) % bytes || (valid_bytes && uintptr_t(src) % bytes))
    fault("cp.async of %zu bytes from %p to %p: not aligned", bytes, src, dst);
  auto& copies = running->fiber->copies;
  if (copies.empty()) copies.emplace_back();
  copies.back().push_back({dst, src, bytes, valid_bytes});
}

void async_commit() {
  auto& copies = running->fiber->copies;
  if (copies.empty()) copies.emplace_back();
  copies.emplace_back();
}

void async_wait(int newest_left) {
  auto& copies = running->fiber->copies;
  // The open group is not waited for, except by those who wait for all.
  if (copies.empty()) return;
  while (int(copies.size()) - 1 > newest_left) {
    for (const AsyncCopy& copy : copies.front()) {
      memcpy(copy.dst, copy.src, copy.valid_bytes);
      memset(static_cast<char*>(copy.dst) + copy.valid_bytes, 0, copy.bytes - copy.valid_bytes);
    }
    copies.pop_front();
  }
}

void store_later(std::function<void()> work) { running->fiber->open_stores.push_back(std::move(work)); }

void store_commit() { running->fiber->stores.push_back(std::exchange(running->fiber->open_stores, {})); }

void store_wait(int newest_left) {
  auto& stores = running->fiber->stores;
  while (int(stores.size()) > newest_left) {
    for (const auto& work : stores.front()) work();
    stores.pop_front();
  }
}

Products& products() { return running->in->products[running->linear / kWarpgroupThreads]; }

void Products::issue(std::function<void()> product) {
  if (!fenced) fault("wgmma without wgmma_fence before it");
  open_.push_back(std::move(product));
}

void Products::commit() { groups_.push_back(std::exchange(open_, {})); }

void Products::wait(int newest_left) {
  while (int(groups_.size()) > newest_left) {
    for (const auto& product : groups_.front()) product();
    groups_.pop_front();
  }
  if (newest_left == 0) fenced = false;
}

}  // namespace emulation
}  // namespace fastnn
